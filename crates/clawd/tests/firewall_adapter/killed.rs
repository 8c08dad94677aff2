//! An agent that is killed at every command: never open, never left with rules that were not proven.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clawd::ports::Firewall;

use super::{adapter, here, in_force, is_pending, rules, settle, until_put_back};

/// Programs that the adapter runs.
const PROGRAMS: [&str; 8] = [
    "iptables",
    "ip6tables",
    "iptables-save",
    "ip6tables-save",
    "iptables-restore",
    "ip6tables-restore",
    "ipset",
    "systemctl",
];
/// Says to this very program that it is the agent that is killed.
const AGENT: &str = "CLAW_KILLED_AGENT";

/// The agent: what is to be done to put the third rules in force over the first.
#[tokio::test]
async fn killed_agent() {
    if std::env::var_os(AGENT).is_none() {
        return;
    }
    let firewall = adapter();
    firewall.arm(Duration::from_millis(700)).await.unwrap();
    firewall.apply(&rules(3)).await.unwrap();
    assert!(in_force(&firewall, &rules(3)).await);
    firewall.commit(&rules(3)).await.unwrap();
}

/// Programs that count, and kill whoever started the one with a certain number, before or after its work.
struct Trap {
    dir: PathBuf,
}

impl Trap {
    fn set() -> Self {
        let dir = PathBuf::from("/run/claw-trap");
        std::fs::create_dir_all(&dir).unwrap();
        for program in PROGRAMS {
            let real =
                ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(|at| Path::new(at).join(program));
            let real = real.iter().find(|path| path.exists()).expect("the program is there");
            let script = format!(
                "#!/bin/sh\n\
                 exec 9>>/run/claw-trap/count.lock; flock 9\n\
                 n=$(($(cat \"$CLAW_COUNT\") + 1)); echo $n >\"$CLAW_COUNT.next\"\n\
                 mv \"$CLAW_COUNT.next\" \"$CLAW_COUNT\"; exec 9>&-\n\
                 [ $n = \"$CLAW_KILL_BEFORE\" ] && kill -KILL $PPID && exit 1\n\
                 if [ $n = \"$CLAW_KILL_AFTER\" ]; then {real} \"$@\"; kill -KILL $PPID; exit 1; fi\n\
                 exec {real} \"$@\"\n",
                real = real.display()
            );
            let path = dir.join(program);
            std::fs::write(&path, script).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { dir }
    }

    /// Runs the agent; whether it lived, and how many programs it ran.
    async fn run(&self, kill: &str, at: u32) -> (bool, u32) {
        // A file of its own: a program that a killed agent left behind counts where nobody looks any more.
        let count = self.dir.join(format!("{kill}.{at}"));
        std::fs::write(&count, "0").unwrap();
        let path = format!("{}:{}", self.dir.display(), std::env::var("PATH").unwrap());
        let agent = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "firewall_adapter::killed::killed_agent"])
            .env("PATH", path)
            .env(AGENT, "1")
            .env(kill, at.to_string())
            .env("CLAW_COUNT", &count)
            .output()
            .await
            .unwrap();
        let count = std::fs::read_to_string(&count).unwrap();
        let killed = agent.status.code().is_none();
        assert!(killed || agent.status.success(), "{}", String::from_utf8_lossy(&agent.stdout));
        (!killed, count.trim().parse().unwrap())
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        let _left = std::fs::remove_dir_all(&self.dir);
    }
}

#[tokio::test]
async fn an_agent_that_is_killed_at_any_command_leaves_good_rules() {
    let Some(firewall) = here("killed").await else { return };
    settle(&firewall, &rules(1)).await;
    let trap = Trap::set();
    let (mut deaths, mut reverted) = (0, 0);
    for kill in ["CLAW_KILL_BEFORE", "CLAW_KILL_AFTER"] {
        for at in 1_u32.. {
            let (lived, count) = trap.run(kill, at).await;
            if lived {
                assert!(count < at, "the agent ran {count} programs and was to die at {at}");
                assert!(in_force(&firewall, &rules(3)).await);
                break;
            }
            deaths += 1;
            if is_pending() {
                // The next agent comes too late for nothing: the watchdog alone must do it, unless the agent
                // died before it was started; then nothing was changed yet, and the next agent tidies up.
                let state = crate::lab::run(&[
                    "systemctl",
                    "show",
                    "--property=ActiveState",
                    "--value",
                    "clawd-firewall-revert.service",
                ]);
                if state.await.trim() != "active" {
                    let changed = !in_force(&firewall, &rules(1)).await;
                    assert!(
                        !is_pending() || !changed,
                        "{kill} {at}: rules were changed without a watchdog"
                    );
                    firewall.revert().await.unwrap();
                }
                until_put_back(&firewall, &rules(1)).await;
                reverted += 1;
            }
            let good = firewall.last_good().await.unwrap().expect("there are good rules");
            let forced = firewall.deviations(&good).await.unwrap();
            assert_eq!(
                forced,
                Vec::<String>::new(),
                "{kill} {at}: what is in force is not what is good"
            );
            settle(&firewall, &rules(1)).await;
        }
        settle(&firewall, &rules(1)).await;
    }
    assert!(deaths > 20 && reverted > 10, "{deaths} deaths, {reverted} reverted");
    eprintln!("{deaths} deaths, {reverted} reverted");
}
