//! `cargo xtask setup`: everything that the other commands would install or build on their first run.

use crate::lab::prerequisites;

/// Installs the packages and builds the control plane; says where it is.
///
/// # Errors
/// What is missing and what to do.
pub fn run() -> anyhow::Result<i32> {
    prerequisites::guest()?;
    let programs = prerequisites::control_plane()?;
    println!("etcd            {}", programs.etcd.display());
    println!("kube-apiserver  {}", programs.kube_apiserver.display());
    println!("kubectl         {}", programs.kubectl.display());
    println!("helm            {}", programs.helm.display());
    Ok(0)
}
