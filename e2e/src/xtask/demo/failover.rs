//! The holder of the virtual IP loses its link and gets it back.

use super::checks::{NODE_PORT, PREFERRED, VIRTUAL_IP, holders};
use super::{Demo, READY, show};
use crate::lab::Lab;
use crate::lab::scene::PATIENCE;
use crate::lab::traffic::longest_outage;
use crate::tool::traffic::{Attempt, Transport};
use std::time::{Duration, Instant};

/// How long the move may take: the fence decides, for a dead holder's address must have run out first.
const MOVE: Duration = Duration::from_secs(12);
/// How long a planned move may leave the client without an answer: both nodes live and say what they do.
const PLANNED: Duration = Duration::from_secs(3);

/// Cuts the holder off, watches the move, and brings it back.
pub(super) fn run(demo: &mut Demo, lab: &Lab) -> anyhow::Result<()> {
    let target = format!("{VIRTUAL_IP}:{NODE_PORT}").parse()?;
    let prober = lab.place("client").probe(Transport::Tcp, target, 20)?;
    prober.wait_for_answers(20, PATIENCE)?;

    println!("  -- {PREFERRED} loses its link");
    let cut = Instant::now();
    lab.topology().set_link(PREFERRED, false)?;
    let moved = wait(|| Ok(holders(lab)?.keys().any(|node| node != PREFERRED)))?;
    let so_far = prober.answered()?;
    let answered = wait(|| Ok(prober.answered()? >= so_far + 10))?;
    let seen = prober.attempts()?;
    let outage = longest_outage(&seen);
    demo.record("outage at the cut", outage);
    demo.check(
        "the virtual IP moves",
        moved && answered,
        format!(
            "on {:?} {:.1} s after the cut",
            holders(lab)?.keys().collect::<Vec<_>>(),
            cut.elapsed().as_secs_f64()
        ),
    );
    demo.check_time(
        "the client is without an answer for less than 12 s",
        answered && outage < MOVE,
        format!("{:.1} s, {}", outage.as_secs_f64(), count(&seen)),
    );
    let given_up = wait(|| Ok(!holders(lab)?.contains_key(PREFERRED)))?;
    demo.check(
        "the cut off node has given the address up by itself",
        given_up,
        lab.place(PREFERRED).run(&["ip", "-br", "-4", "addr", "show", "dev", "ens33"])?.trim().to_owned(),
    );
    show::command(lab, &["get", "vip,nns"])?;

    println!("  -- {PREFERRED} gets its link back");
    let before = prober.attempts()?.len();
    let back = Instant::now();
    lab.topology().set_link(PREFERRED, true)?;
    let returned = wait(|| Ok(holders(lab)?.into_keys().eq([PREFERRED.to_owned()])))?;
    demo.record("return of the virtual ip", back.elapsed());
    demo.check(
        "the virtual IP returns to the preferred node alone",
        returned,
        format!(
            "on {:?} after {:.1} s",
            holders(lab)?.keys().collect::<Vec<_>>(),
            back.elapsed().as_secs_f64()
        ),
    );
    let ready = lab.cluster().kubectl(&["wait", "--for=condition=Ready", "nns", "--all", READY]);
    prober.wait_for_answers(prober.answered()? + 20, PATIENCE)?;
    let seen = prober.stop()?;
    let outage = longest_outage(&seen[before.min(seen.len())..]);
    demo.record("outage at the return", outage);
    demo.check_time(
        "the planned move back costs the client less than 3 s",
        outage < PLANNED,
        format!("{:.2} s", outage.as_secs_f64()),
    );
    let detail = match &ready {
        Ok(text) => text.trim().replace('\n', ", "),
        Err(error) => error.to_string(),
    };
    demo.check("all nodes are ready again", ready.is_ok(), detail);
    Ok(())
}

fn count(attempts: &[Attempt]) -> String {
    let failed = attempts.iter().filter(|attempt| attempt.error.is_some()).count();
    format!("{failed} of {} attempts unanswered", attempts.len())
}

/// Asks until it is so; `false` when it never was.
pub(super) fn wait(mut so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<bool> {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        if so()? {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(false)
}
