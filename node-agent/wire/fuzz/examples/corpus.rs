//! Writes the captures of the tests as seeds, one file each: `corpus/<target>/<name>-<number>`.

use std::{fs, io, path::Path};

use capture::Capture;
use nodenet_wire::message::Messages;

#[path = "../../tests/capture/mod.rs"]
mod capture;

fn main() -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let write = |target: &str, name: &str, number: usize, bytes: &[u8]| {
        let folder = corpus.join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("{name}-{number}")), bytes)
    };
    let datagrams = |captures: Vec<Capture>| {
        captures.into_iter().flat_map(|Capture { name, sent, received }| {
            let all: Vec<_> = sent.into_iter().chain(received).enumerate().collect();
            all.into_iter().map(move |(number, bytes)| (name.clone(), number, bytes))
        })
    };
    for (name, number, bytes) in datagrams(capture::extack()) {
        write("netlink", &name, number, &bytes)?;
    }
    for (name, number, bytes) in datagrams(capture::ipvs()) {
        write("netlink", &name, number, &bytes)?;
        for message in Messages::new(&bytes).flatten() {
            write("ipvs", &name, number, message.payload)?;
        }
    }
    for (name, number, bytes) in datagrams(capture::ipset()) {
        write("netlink", &name, number, &bytes)?;
        for message in Messages::new(&bytes).flatten() {
            let [_, command] = message.header.message_type.to_be_bytes();
            let exclusive = u8::from(message.header.flags & (1 << 9) != 0);
            write("ipset", &name, number, &[&[command, exclusive], message.payload].concat())?;
        }
    }
    for (name, number, bytes) in datagrams(capture::neighbors()) {
        write("neighbors", &name, number, &bytes)?;
    }
    fs::create_dir_all(corpus.join("conntrack"))
}
