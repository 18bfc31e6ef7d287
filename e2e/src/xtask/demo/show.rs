//! What the demo prints for people.

use crate::lab::Lab;
use crate::lab::process::last_lines;

pub(super) fn heading(text: &str) {
    println!("\n== {text}");
}

pub(super) fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// Runs kubectl as a person would and prints command and output.
pub(super) fn command(lab: &Lab, arguments: &[&str]) -> anyhow::Result<()> {
    println!("$ kubectl {}", arguments.join(" "));
    println!("{}", lab.cluster().kubectl(arguments)?.trim_end());
    Ok(())
}

/// Prints what one looks at.
pub(super) fn state(lab: &Lab, node: &str) -> anyhow::Result<()> {
    command(lab, &["get", "vip,nns,nnslice"])?;
    println!("$ kubectl get nns {node} -o yaml    # its status");
    let text = lab.cluster().kubectl(&["get", "nns", node, "-o", "yaml"])?;
    let status: Vec<&str> = text.lines().skip_while(|line| *line != "status:").collect();
    println!("{}", status.join("\n"));
    for argv in [&["ip", "-br", "addr"][..], &["ipvsadm", "-Ln"]] {
        println!("{node}$ {}", argv.join(" "));
        println!("{}", lab.place(node).run(argv)?.trim_end());
    }
    Ok(())
}

/// Prints the ends of the logs, for a demo that went wrong.
pub(super) fn logs(lab: &Lab) {
    heading("the ends of the logs");
    for number in [0, 1] {
        let path = lab.site().log(&format!("nodenet-operator-{number}"));
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        println!("-- operator {number}\n{}", last_lines(&text, 15));
    }
    for node in &lab.topology().spec().nodes {
        let text = lab.agent_log(&node.name).unwrap_or_default();
        println!("-- agent of {}\n{}", node.name, last_lines(&text, 15));
    }
}

/// Says how to use the lab and waits for Ctrl-C.
pub(super) fn keep(lab: &Lab) {
    let kubectl = lab.cluster().kubectl_program();
    let folder = kubectl.parent().unwrap_or(kubectl).display();
    println!("\nThe lab stays up until Ctrl-C. In another shell:");
    println!("  export KUBECONFIG={} PATH={folder}:$PATH", lab.cluster().kubeconfig().display());
    println!("  kubectl get nodenet");
    println!(
        "  cargo xtask enter --lab {} k8s-node-1 -- ip -br addr    # any node, pod or `client`",
        lab.site().netns()
    );
    println!("  logs: {} and {}", lab.site().folder().display(), lab.site().shared().display());
    loop {
        std::thread::park();
    }
}
