//! The images of the Dockerfile, without an engine: their file trees are made from the Dockerfile's own lines (the same
//! packages, the same static programs) and the programs start in them by chroot.
#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests fail by panicking")]

use nodenet_e2e::lab::{cache::Cache, error::LabError, process::output};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use tempfile::TempDir;

/// What a final stage of the Dockerfile puts into its image.
#[derive(Debug, Default, Clone)]
struct Stage {
    base: String,
    packages: Vec<String>,
    /// From where in the build stage, to where.
    copies: Vec<(String, String)>,
    user: Option<String>,
    entrypoint: Vec<String>,
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn stages() -> BTreeMap<String, Stage> {
    let text = fs::read_to_string(workspace().join("Dockerfile")).expect("a Dockerfile");
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let text = lines.join("\n").replace("\\\n", " ");
    let mut stages: Vec<(String, Stage)> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["FROM", base, "AS", name] = words[..] {
            stages.push((name.to_owned(), Stage { base: base.to_owned(), ..Stage::default() }));
            continue;
        }
        let Some((_, stage)) = stages.last_mut() else { continue };
        match words[..] {
            ["COPY", "--from=build", from, to] => stage.copies.push((from.to_owned(), to.to_owned())),
            ["USER", user] => stage.user = Some(user.to_owned()),
            ["ENTRYPOINT", ..] => {
                let list = line.trim_start_matches("ENTRYPOINT");
                stage.entrypoint = serde_json::from_str(list).expect("ENTRYPOINT as a list");
            }
            ["RUN", ..] => {
                let install = words.windows(2).position(|pair| pair == ["apt-get", "install"]);
                let after = install.map_or(words.len(), |at| at + 2);
                let packages = words[after..].iter().take_while(|word| **word != "&&");
                stage.packages.extend(packages.filter(|w| !w.starts_with('-')).map(|w| (*w).to_owned()));
            }
            _ => {}
        }
    }
    stages.into_iter().collect()
}

/// The stage `name`, which must be there.
fn stage(name: &str) -> Stage {
    stages().remove(name).unwrap_or_else(|| panic!("the Dockerfile has no stage {name}"))
}

/// Whether a chroot can be entered; says why not.
fn may_chroot() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIP: only root enters a chroot");
    }
    root
}

/// What a program prints that must succeed.
fn says(command: &mut Command) -> String {
    output(command, "").unwrap_or_else(|error| panic!("{error}"))
}

/// Builds both programs as the Dockerfile does, except that they are not optimised: that takes minutes. The programs by
/// name.
fn programs() -> &'static BTreeMap<String, PathBuf> {
    static BUILT: OnceLock<BTreeMap<String, PathBuf>> = OnceLock::new();
    BUILT.get_or_init(|| {
        let rustc = says(Command::new("rustc").arg("-vV"));
        let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc names its host");
        let messages = says(
            Command::new(env!("CARGO"))
                .args(["build", "--locked", "--message-format=json", "--target", host])
                .args(["-p", "nodenet-operator", "-p", "nodenet-agent"])
                .env("RUSTFLAGS", "-C target-feature=+crt-static")
                .env_remove("CARGO_ENCODED_RUSTFLAGS")
                .current_dir(workspace()),
        );
        messages
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
            .filter_map(|path| Some((path.file_name()?.to_str()?.to_owned(), path)))
            .collect()
    })
}

/// Puts the stage's programs into `tree`.
fn install(stage: &Stage, tree: &Path) {
    for (from, to) in &stage.copies {
        let name = from.strip_prefix("/out/").expect("copies come from /out");
        let program = programs().get(name).unwrap_or_else(|| panic!("the build makes no {name}"));
        let to = tree.join(to.trim_start_matches('/'));
        fs::create_dir_all(to.parent().expect("a folder")).expect("made");
        fs::copy(program, to).expect("copied");
    }
}

/// Runs a program in `tree` with the variables that engines set.
fn chroot(tree: &Path, user: Option<&str>, argv: &[&str]) -> Command {
    let mut command = Command::new("chroot");
    if let Some(user) = user {
        command.arg(format!("--userspec={user}"));
    }
    command.arg(tree).args(argv).env_clear();
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

/// Whether an ELF file asks for a dynamic loader (a program header PT_INTERP).
fn wants_a_loader(program: &Path) -> bool {
    let bytes = fs::read(program).expect("readable");
    let number = |at: usize, length: usize| {
        bytes[at..at + length].iter().rev().fold(0_usize, |number, byte| number << 8 | usize::from(*byte))
    };
    assert_eq!(&bytes[..6], b"\x7fELF\x02\x01", "64 bits, little-endian");
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    const PT_INTERP: usize = 3;
    (0..count).any(|entry| number(table + entry * size, 4) == PT_INTERP)
}

/// The packages of the agent's image and of its base, unpacked; kept in the lab's cache.
fn unpacked(stage: &Stage) -> Result<PathBuf, LabError> {
    // Of the base: what the chart's containers call.
    let mut packages: Vec<&str> = ["base-files", "bash", "coreutils", "dash"].to_vec();
    packages.extend(stage.packages.iter().map(String::as_str));
    let name = format!("image-{}", packages.join("-"));
    Cache::open()?.entry(&name, |work| {
        let run = |command: &mut Command| output(command.current_dir(work), "");
        let without = ["recommends", "suggests", "conflicts", "breaks", "replaces", "enhances"];
        let mut depends = Command::new("apt-cache");
        depends.args(["depends", "--recurse"]).args(without.map(|kind| format!("--no-{kind}"))).args(&packages);
        let all = run(&mut depends)?;
        let starts = |line: &&str| line.starts_with(|first: char| first.is_ascii_alphanumeric());
        run(Command::new("apt-get").args(["download", "-qq", "-oAPT::Sandbox::User=root"]).args(all.lines().filter(starts)))?;
        // Merged /usr, as every Debian has it.
        run(Command::new("sh").args([
            "-ec",
            "mkdir -p tree/usr/bin tree/usr/sbin tree/usr/lib tree/usr/lib64
             for folder in bin sbin lib lib64; do ln -s usr/$folder tree/$folder; done
             for package in *.deb; do
                 dpkg-deb --fsys-tarfile $package |
                     tar -x -C tree --keep-directory-symlink --exclude='./usr/share/doc' --exclude='./usr/share/man'
             done",
        ]))?;
        Ok((name.clone(), work.join("tree")))
    })
}

/// The agent's image as a tree; says why not where there is none.
fn agent_tree(stage: &Stage) -> Option<TempDir> {
    let packages = match unpacked(stage) {
        Ok(tree) => tree,
        Err(error) => {
            println!("SKIP: Debian's packages of the agent's image cannot be had: {error}");
            return None;
        }
    };
    let tree = tempfile::tempdir().expect("a folder");
    says(Command::new("cp").arg("-a").arg(packages.join(".")).arg(tree.path()));
    install(stage, tree.path());
    Some(tree)
}

fn entrypoint<'a>(stage: &'a Stage, arguments: &[&'a str]) -> Vec<&'a str> {
    stage.entrypoint.iter().map(String::as_str).chain(arguments.iter().copied()).collect()
}

#[test]
fn both_programs_are_static() {
    for (name, program) in programs() {
        assert!(!wants_a_loader(program), "{name} asks for a dynamic loader");
    }
}

#[test]
fn the_operator_runs_alone_and_without_root() {
    if !may_chroot() {
        return;
    }
    let stage = stage("operator");
    assert_eq!(stage.base, "scratch");
    let tree = tempfile::tempdir().expect("a folder");
    fs::set_permissions(tree.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set");
    install(&stage, tree.path());
    let user = stage.user.as_deref();
    assert_eq!(user, Some("65532:65532"), "the user that the chart asks for");
    let version = says(&mut chroot(tree.path(), user, &entrypoint(&stage, &["--version"])));
    assert_eq!(version.trim(), format!("nodenet-operator {}", env!("CARGO_PKG_VERSION")));
    for subcommand in ["run", "render", "cleanup"] {
        let help = says(&mut chroot(tree.path(), user, &entrypoint(&stage, &[subcommand, "--help"])));
        assert!(help.contains("Usage: nodenet-operator"), "{help}");
    }
}

#[test]
fn the_agents_image_has_what_the_agent_calls() {
    if !may_chroot() {
        return;
    }
    let stage = stage("agent");
    let Some(tree) = agent_tree(&stage) else { return };
    let version = says(&mut chroot(tree.path(), None, &entrypoint(&stage, &["--version"])));
    assert_eq!(version.trim(), format!("nodenet-agent {}", env!("CARGO_PKG_VERSION")));
    for subcommand in ["run", "apply", "show"] {
        let help = says(&mut chroot(tree.path(), None, &entrypoint(&stage, &[subcommand, "--help"])));
        assert!(help.contains("Usage: nodenet-agent"), "{help}");
    }
    for (mode, shown) in [("nft", "(nf_tables)"), ("legacy", "(legacy)")] {
        for family in ["iptables", "ip6tables"] {
            for program in ["", "-save", "-restore"] {
                let program = format!("{family}-{mode}{program}");
                let said = says(&mut chroot(tree.path(), None, &[&program, "--version"]));
                assert!(said.contains(shown), "{program}: {said}");
            }
        }
    }
    says(&mut chroot(tree.path(), None, &["modprobe", "--version"]));
    // The chart's other containers run in this image too.
    let script = "for module in \"$@\"; do seq 1 >/dev/null; timeout 1 true; echo $module; done";
    assert_eq!(says(&mut chroot(tree.path(), None, &["/bin/sh", "-c", script, "name", "a", "b"])), "a\nb\n");
    says(&mut chroot(tree.path(), Some("65532:65532"), &["/bin/bash", "-c", "exit 0"]));
}

#[test]
fn the_chart_uses_flags_that_the_programs_have() {
    let templates = workspace().join("charts/nodenet/templates");
    let flags = |path: &str| -> Vec<String> {
        let text = fs::read_to_string(templates.join(path)).expect("readable");
        let flag = |line: &str| {
            let rest = line.trim().strip_prefix("- --")?;
            let end = rest.find(|c: char| c != '-' && !c.is_ascii_lowercase()).unwrap_or(rest.len());
            Some(format!("--{}", &rest[..end]))
        };
        text.lines().filter_map(flag).collect()
    };
    let shared = flags("_helpers.tpl");
    assert_eq!(shared, ["--api-server"]);
    for (program, subcommand, own) in [
        ("nodenet-operator", "run", flags("operator/deployment.yaml")),
        ("nodenet-operator", "cleanup", flags("cleanup.yaml")),
        ("nodenet-agent", "run", flags("agent/daemonset.yaml")),
    ] {
        let help = says(Command::new(&programs()[program]).args([subcommand, "--help"]));
        let known: Vec<&str> = help.split(|c: char| c.is_whitespace() || c == ',' || c == '=').collect();
        for flag in own.iter().chain(&shared) {
            assert!(known.contains(&flag.as_str()), "{program} {subcommand} has no {flag}:\n{help}");
        }
    }
}

#[test]
fn the_dockerfile_makes_both_images_from_static_programs() {
    let text = fs::read_to_string(workspace().join("Dockerfile")).expect("a Dockerfile");
    assert!(text.contains("-C target-feature=+crt-static"));
    let mut names: Vec<String> = stages().into_keys().collect();
    names.sort();
    assert_eq!(names, ["agent", "build", "operator"]);
    assert_eq!(stage("agent").packages, ["iptables", "kmod"]);
    assert_eq!(stage("agent").entrypoint, ["/usr/sbin/nodenet-agent"]);
}
