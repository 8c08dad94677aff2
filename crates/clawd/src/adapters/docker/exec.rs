//! Programs within containers.

use std::time::Duration;

use bollard::exec::{CreateExecOptions, StartExecResults};

use super::trial::tail;
use super::{Docker, LOOK, failure, within};
use crate::ports::{Inside, Ran, RuntimeError};

impl Inside for Docker {
    async fn run_inside(
        &self,
        container: &str,
        argv: &[&str],
        deadline: Duration,
    ) -> Result<Ran, RuntimeError> {
        let client = self.client()?;
        let doing = "preparing a program within a container";
        let options = CreateExecOptions {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(argv.to_vec()),
            ..CreateExecOptions::default()
        };
        let created = within(doing, LOOK, client.create_exec(container, options)).await?;
        let id = created.map_err(|error| failure(doing, error))?.id;
        let doing = "running a program within a container";
        let run = async {
            match client.start_exec(&id, None).await? {
                StartExecResults::Attached { output, .. } => tail(output).await,
                StartExecResults::Detached => Ok(String::new()),
            }
        };
        let output = within(doing, deadline, run).await?.map_err(|error| failure(doing, error))?;
        let doing = "asking how a program ended";
        let ended = within(doing, LOOK, client.inspect_exec(&id)).await?;
        let status = ended.map_err(|error| failure(doing, error))?.exit_code;
        // None: its output ended, and it has not.
        Ok(Ran { status: status.unwrap_or(-1), output })
    }
}
