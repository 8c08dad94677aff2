use claw_core::address::{AddressPool, InstanceNetwork};
use claw_core::name::ImageRef;
use claw_core::plan::ContainerPlan;

use super::*;
use crate::ports::Mounts;

fn trial(network: Option<InstanceNetwork>, command: Option<&[&str]>) -> Trial {
    let plan: ContainerPlan = container::tests::plan();
    Trial {
        container: ContainerPlan { image: ImageRef::parse("openclaw:next").unwrap(), ..plan },
        mounts: Mounts {
            data: "/var/lib/clawd/instances/demo/gen-2".into(),
            secrets: "/run/clawd/secrets/demo/.env".into(),
        },
        network,
        command: command.map(|words| words.iter().map(|word| (*word).to_owned()).collect()),
    }
}

#[test]
fn a_trial_is_the_instances_container_with_less_of_everything() {
    let network = AddressPool::STANDARD.trial();
    let body = serde_json::to_value(create_body(&trial(Some(network), None), Some(IO_WEIGHT)));
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("../golden/trial.json")).unwrap();
    let body = body.unwrap();
    assert_eq!(body, golden, "{body:#}");
}

#[test]
fn a_migration_has_no_network_at_all() {
    let body = create_body(&trial(None, Some(&["openclaw", "doctor"])), None);
    assert_eq!(body.cmd.unwrap(), ["openclaw", "doctor"]);
    assert_eq!((body.networking_config, body.hostname.as_deref()), (None, Some("demo")));
    let host = body.host_config.unwrap();
    assert_eq!(host.network_mode.as_deref(), Some("none"));
    assert_eq!((host.dns, host.blkio_weight), (None, None));
    assert_eq!(host.readonly_rootfs, Some(true));
}

#[test]
fn no_instance_has_a_trials_name() {
    let of = |name: &str| InstanceName::parse(name).unwrap();
    let trial = trial_name(&of("a"));
    assert_ne!(trial, claw_core::plan::container_name(&of("trial-a")));
    assert!(InstanceName::parse("trial.a").is_err());
}

#[tokio::test]
async fn the_end_of_a_long_output_is_kept() {
    let lines = (0..10_000).map(|n| {
        let message = format!("line {n} \u{e4}\n").into();
        Ok(LogOutput::StdOut { message })
    });
    let kept = tail(futures_util::stream::iter(lines)).await.unwrap();
    assert!(kept.ends_with("line 9999 \u{e4}"), "{kept}");
    assert!(kept.chars().count() <= TAIL_CHARACTERS && kept.chars().count() > 1_900);
}
