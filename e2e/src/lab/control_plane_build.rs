//! kube-apiserver and kube-proxy, built from Debian's source package `kubernetes` with Debian's Go.
//!
//! The tree predates Go modules as Debian uses them, so it is built in GOPATH mode. Two things must be
//! done first: the OpenAPI definitions are generated (the tarball has them not), and the vendored
//! `reflect2` is replaced by Debian's newer one (the old one crashes when built with Go 1.18 or later).

use super::cache::Cache;
use super::error::{During, LabError};
use super::prerequisites::{apt_get, build_needs};
use super::process::output;
use super::progress::step;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE_PACKAGE: &str = "kubernetes";
const REFLECT2: &str = "/usr/share/gocode/src/github.com/modern-go/reflect2";
const IMPORT: &str = "k8s.io/kubernetes";

/// The built programs.
#[derive(Debug, Clone)]
pub struct Built {
    /// The API server.
    pub kube_apiserver: PathBuf,
    /// The Service proxy, for comparison.
    pub kube_proxy: PathBuf,
}

/// Finds them in the cache or builds them, which takes some minutes.
///
/// # Errors
/// When the source cannot be had or does not build; the text names `KUBEBUILDER_ASSETS` as the way out.
pub fn ensure(cache: &Cache) -> Result<Built, LabError> {
    let entry = cache.entry("kubernetes-", |work| {
        build_needs()?;
        let version = step("fetching the source of kube-apiserver", || fetch(work)).map_err(|error| {
            LabError::Missing {
                what: format!("the source package `{SOURCE_PACKAGE}` ({error})"),
                remedy: "set KUBEBUILDER_ASSETS to a folder with etcd, kube-apiserver and kubectl".into(),
            }
        })?;
        let tree = Tree { go_path: work.join("go"), work: work.into() };
        step("building kube-apiserver (some minutes; kept for the next run)", || tree.build(&version))?;
        Ok((format!("kubernetes-{version}"), work.join("entry")))
    })?;
    Ok(Built { kube_apiserver: entry.join("kube-apiserver"), kube_proxy: entry.join("kube-proxy") })
}

/// Downloads and unpacks the source; returns its version. The machine's own apt configuration stays as
/// it is: the source lists are copies with `deb-src` for `deb`.
fn fetch(work: &Path) -> Result<String, LabError> {
    let parts = work.join("sources.list.d");
    fs::create_dir_all(&parts).during("make", parts.display())?;
    fs::create_dir_all(work.join("lists/partial")).during("make", "the folder of package lists")?;
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    for file in files {
        let (Ok(text), Some(name)) = (fs::read_to_string(&file), file.file_name()) else { continue };
        let extension = file.extension().unwrap_or_default();
        let sources = if extension == "sources" { stanzas(&text) } else { lines(&text) };
        if extension == "sources" || extension == "list" {
            fs::write(parts.join(name), sources).during("write", parts.display())?;
        }
    }
    let apt = || {
        let mut command = apt_get();
        command
            .current_dir(work)
            .args(["-q", "-o", "Dir::Etc::SourceList=/dev/null"])
            .args(["-o", &format!("Dir::Etc::SourceParts={}", parts.display())])
            .args(["-o", &format!("Dir::State::Lists={}", work.join("lists").display())])
            // The folder may be readable by root only.
            .args(["-o", "APT::Sandbox::User=root"]);
        command
    };
    output(apt().arg("update"), "")?;
    output(apt().args(["source", "--download-only", SOURCE_PACKAGE]), "")?;
    let entries = fs::read_dir(work).during("read", work.display())?;
    let description =
        entries.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "dsc"));
    let Some(description) = description else {
        return Err(LabError::Missing {
            what: format!("a source package `{SOURCE_PACKAGE}`"),
            remedy: "apt-get source made none".into(),
        });
    };
    let text = fs::read_to_string(&description).during("read", description.display())?;
    let version =
        text.lines().find_map(|line| line.strip_prefix("Version: ")).unwrap_or("unknown").to_owned();
    let target = work.join("go/src/k8s.io");
    fs::create_dir_all(&target).during("make", target.display())?;
    let mut unpack = Command::new("dpkg-source");
    unpack.args(["--no-check", "--extract"]).arg(&description).arg(target.join("kubernetes"));
    output(&mut unpack, "")?;
    Ok(version)
}

/// The one-line format: Debian's own lines, for sources.
fn lines(text: &str) -> String {
    text.lines()
        .filter(|line| line.starts_with("deb ") && line.contains("debian"))
        .map(|line| format!("{}\n", line.replacen("deb ", "deb-src ", 1)))
        .collect()
}

/// The deb822 format: Debian's own stanzas, for sources.
fn stanzas(text: &str) -> String {
    text.split("\n\n")
        .filter(|stanza| stanza.lines().any(|line| line.starts_with("URIs:") && line.contains("debian")))
        .map(|stanza| {
            let source = |line: &str| {
                if line.starts_with("Types:") { "Types: deb-src\n".to_owned() } else { format!("{line}\n") }
            };
            stanza.lines().map(source).collect::<String>() + "\n"
        })
        .collect()
}

/// The unpacked tree.
struct Tree {
    work: PathBuf,
    go_path: PathBuf,
}

impl Tree {
    fn root(&self) -> PathBuf {
        self.go_path.join("src").join(IMPORT)
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.root())
            .env("GOPATH", &self.go_path)
            .env("GOCACHE", self.work.join("go-cache"))
            .env("GO111MODULE", "off")
            .env("GOFLAGS", "")
            .env("CGO_ENABLED", "0");
        command
    }

    fn build(&self, version: &str) -> Result<(), LabError> {
        let vendored = self.root().join("vendor/github.com/modern-go/reflect2");
        fs::remove_dir_all(&vendored).during("remove", vendored.display())?;
        output(Command::new("cp").args(["-rL", REFLECT2]).arg(&vendored), "")?;
        self.generate_open_api()?;
        let entry = self.work.join("entry");
        fs::create_dir(&entry).during("make", entry.display())?;
        // Both: the second takes seconds once the first has filled the compiler's cache.
        for program in ["kube-apiserver", "kube-proxy"] {
            let mut command = self.command("go");
            command.args(["build", "-ldflags", &version_flags(version), "-o"]);
            command.arg(entry.join(program)).arg(format!("./cmd/{program}"));
            output(&mut command, "")?;
        }
        Ok(())
    }

    fn generate_open_api(&self) -> Result<(), LabError> {
        let generator = self.work.join("openapi-gen");
        let mut build = self.command("go");
        build.args(["build", "-o"]).arg(&generator).arg("./vendor/k8s.io/kube-openapi/cmd/openapi-gen");
        output(&mut build, "")?;
        let mut folders = BTreeSet::new();
        for (folder, import) in
            [("staging/src/k8s.io", format!("{IMPORT}/vendor/k8s.io")), ("pkg", format!("{IMPORT}/pkg"))]
        {
            tagged(&self.root().join(folder), &import, &mut folders)?;
        }
        let inputs: Vec<String> = folders.into_iter().collect();
        let mut generate = self.command(&generator);
        generate
            .args(["--logtostderr", "-i", &inputs.join(",")])
            .args(["-p", &format!("{IMPORT}/pkg/generated/openapi"), "-O", "zz_generated.openapi"])
            .args(["-h", "vendor/k8s.io/code-generator/hack/boilerplate.go.txt"])
            .arg("-r")
            .arg(self.work.join("violations"));
        output(&mut generate, "").map(drop)
    }
}

/// Import paths of the packages below a folder that ask for OpenAPI definitions.
fn tagged(folder: &Path, import: &str, found: &mut BTreeSet<String>) -> Result<(), LabError> {
    const LEFT_OUT: &[&str] = &["code-generator", "sample-apiserver", "testdata", "vendor", "_examples"];
    for entry in fs::read_dir(folder).during("read", folder.display())? {
        let path = entry.during("read", folder.display())?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !LEFT_OUT.contains(&name.as_str()) {
                tagged(&path, &format!("{import}/{name}"), found)?;
            }
        } else if name.ends_with(".go") {
            let text = fs::read(&path).during("read", path.display())?;
            if String::from_utf8_lossy(&text).contains("+k8s:openapi-gen=") {
                found.insert(import.to_owned());
            }
        }
    }
    Ok(())
}

/// Tells the programs their version, which clients ask for: `1.20.5+really1.20.2-1` is 1.20.2.
fn version_flags(version: &str) -> String {
    let upstream = version.rsplit("really").next().unwrap_or(version);
    let upstream = upstream.split(['-', '+', '~']).next().unwrap_or(upstream);
    let mut numbers = upstream.split('.');
    let (major, minor) = (numbers.next().unwrap_or("1"), numbers.next().unwrap_or("0"));
    let mut flags = "-s -w".to_owned();
    for package in ["client-go/pkg/version", "component-base/version"] {
        let package = format!("{IMPORT}/vendor/k8s.io/{package}");
        flags += &format!(
            " -X {package}.gitVersion=v{upstream} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
        );
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_after_really_counts() {
        assert!(version_flags("1.20.5+really1.20.2-1.1+deb12u1").contains("gitVersion=v1.20.2 "));
        assert!(version_flags("1.32.3+ds-1").contains("gitMinor=32"));
    }

    #[test]
    fn only_debians_own_sources_are_copied() {
        let text =
            "Types: deb\nURIs: http://mirror/debian\nSuites: bookworm\n\nTypes: deb\nURIs: http://other/x\n";
        assert_eq!(stanzas(text), "Types: deb-src\nURIs: http://mirror/debian\nSuites: bookworm\n\n");
        assert_eq!(
            lines("deb http://mirror/debian a main\n# deb x\ndeb http://o/x a b\n"),
            "deb-src http://mirror/debian a main\n"
        );
    }
}
