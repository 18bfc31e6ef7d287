# Both images:
#   docker build --target operator -t nodenet-operator:0.1.0 .
#   docker build --target agent    -t nodenet-agent:0.1.0 .

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# Static: the operator then needs nothing beside itself, and the agent nothing of its base's libraries. A --target keeps
# the flag away from build scripts and procedural macros, which cannot be static.
RUN target=$(rustc -vV | sed -n 's/^host: //p') \
 && export RUSTFLAGS="-C target-feature=+crt-static" \
 && cargo build --release --locked --target "$target" -p nodenet-operator -p nodenet-agent \
 && mkdir /out \
 && cp "target/$target/release/nodenet-operator" "target/$target/release/nodenet-agent" /out/

FROM scratch AS operator
COPY --from=build /out/nodenet-operator /nodenet-operator
USER 65532:65532
ENTRYPOINT ["/nodenet-operator"]

# iptables brings both modes, nft and legacy: the agent uses the one that its node uses. kmod is modprobe.
FROM debian:bookworm-slim AS agent
RUN apt-get update \
 && apt-get install -y --no-install-recommends iptables kmod \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/nodenet-agent /usr/sbin/nodenet-agent
ENTRYPOINT ["/usr/sbin/nodenet-agent"]
