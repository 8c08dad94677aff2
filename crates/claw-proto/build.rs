//! Compiles the protocol with protox: no protoc on the machine is needed.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let files = [
        "claw/node/v1/node.proto",
        "claw/fleet/v1/fleet.proto",
        "claw/fleet/v1/instance.proto",
        "claw/fleet/v1/snapshot.proto",
    ];
    let descriptors = protox::compile(files, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let encoded = prost_encode(&descriptors);
    std::fs::write(out.join("claw.binpb"), encoded)?;
    tonic_prost_build::configure()
        .btree_map(".")
        .bytes("claw.node.v1.DesiredState.host_state")
        .build_transport(true)
        .codec_path("crate::codec::SmallCodec")
        // These hold secrets: src/redact.rs gives them a Debug that does not.
        .skip_debug([
            "claw.node.v1.EnrolRequest",
            "claw.node.v1.DesiredState",
            "claw.node.v1.InstanceAssignment",
            "claw.node.v1.RepositoryEscrow",
            "claw.node.v1.OffsiteStorage",
            "claw.fleet.v1.InstanceSpec",
            "claw.fleet.v1.FetchGatewayTokenResponse",
            "claw.fleet.v1.FetchRecoveryPasswordResponse",
            "claw.fleet.v1.CreateJoinTokenResponse",
        ])
        .compile_fds(descriptors)?;
    Ok(())
}

fn prost_encode(descriptors: &impl prost::Message) -> Vec<u8> {
    descriptors.encode_to_vec()
}
