//! Instances: list, get, watch, create, start, stop, pause, resume, restart, rebuild, gateway-token,
//! recovery-password.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use claw_proto::fleet::v1 as fleet;
use claw_proto::fleet::v1::instance_service_client::InstanceServiceClient;
use tonic::transport::Channel;

use super::{DEFAULT_PATIENCE, Mode, Session, Sources, migrate, rollback};
use crate::call::CallError;
use crate::cli::{ChangeArgs, CreateArgs, Format, InstanceCommand, RecoveryArgs, Until, WatchArgs};
use crate::clock;
use crate::connection::{Connection, MAX_ANSWER, PAGE_SIZE, Repeat};
use crate::failure::CommandError;
use crate::file::content::{self, Origins, Wanted};
use crate::file::spec::{
    FileSource, ResourcesDocument, RunStateDocument, SecretSource, SpecDocument,
};
use crate::meter::{Meter, Style};
use crate::output::OutputError;
use crate::view::Resource as _;
use crate::view::id;
use crate::view::instance::InstanceView;
use crate::view::token::{GatewayTokenView, RecoveryPasswordView};
use crate::watch::goal::Goal;
use crate::watch::{self, Change};

/// Where an agent keeps repositories, each in a directory named after its instance.
const REPOSITORIES: &str = "/var/lib/clawd/repo";

/// An instance that flags describe.
pub(super) struct NewInstance {
    pub(super) name: String,
    pub(super) host: String,
    pub(super) wanted: Wanted,
    pub(super) mode: Mode,
    pub(super) wait: bool,
}

/// The changes that take a name and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Start,
    Stop,
    Pause,
    Resume,
    Restart,
    Rebuild,
}

pub(super) async fn run(
    command: InstanceCommand,
    session: &mut Session<'_>,
) -> Result<(), CommandError> {
    match command {
        InstanceCommand::List { host } => list(host.as_deref(), session).await,
        InstanceCommand::Get { name } => {
            let instance = get(&session.connection, id(&name)).await?;
            Ok(session.output.one(&InstanceView::from(instance))?)
        }
        InstanceCommand::Watch(arguments) => follow(arguments, session).await,
        InstanceCommand::Start(arguments) => change(Verb::Start, &arguments, session).await,
        InstanceCommand::Stop(arguments) => change(Verb::Stop, &arguments, session).await,
        InstanceCommand::Pause(arguments) => change(Verb::Pause, &arguments, session).await,
        InstanceCommand::Resume(arguments) => change(Verb::Resume, &arguments, session).await,
        InstanceCommand::Restart(arguments) => change(Verb::Restart, &arguments, session).await,
        InstanceCommand::Rebuild(arguments) => change(Verb::Rebuild, &arguments, session).await,
        InstanceCommand::Rollback(arguments) => rollback::run(&arguments, session).await,
        InstanceCommand::Migrate(arguments) => migrate::run(&arguments, session).await,
        InstanceCommand::CancelMigration { name } => migrate::cancel(id(&name), session).await,
        InstanceCommand::Revisions { name } => rollback::revisions(id(&name), session).await,
        InstanceCommand::GatewayToken { name } => gateway_token(id(&name), session).await,
        InstanceCommand::RecoveryPassword(arguments) => recovery_password(arguments, session).await,
    }
}

pub(super) fn client(channel: Channel) -> InstanceServiceClient<Channel> {
    InstanceServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER)
}

pub(super) async fn get(
    connection: &Connection,
    name: &str,
) -> Result<fleet::Instance, CommandError> {
    let request = fleet::GetInstanceRequest { name: format!("instances/{name}") };
    let answer = connection
        .call(
            &format!("get instances/{name}"),
            Repeat::Harmless,
            request,
            async |channel, request| client(channel).get_instance(request).await,
        )
        .await?;
    answer.instance.ok_or(CommandError::Answer { missing: "instance" })
}

pub(super) async fn create(
    new: NewInstance,
    session: &mut Session<'_>,
) -> Result<(), CommandError> {
    let running = new.wanted.spec.run_state != i32::from(fleet::RunState::Stopped);
    let instance = send_create(&session.connection, &new).await?;
    if new.mode == Mode::Check {
        return Ok(session.output.value(
            &InstanceView::from(instance),
            &format!("instances/{} would be created", new.name),
        )?);
    }
    if !new.wait {
        let text = format!("instances/{} created", new.name);
        return answer(InstanceView::from(instance), &text, session);
    }
    session.remark(&format!("instances/{} created", new.name))?;
    let until = if running { Until::Running } else { Until::Stopped };
    let goal = Goal::from(until);
    session.wait(std::slice::from_ref(&new.name), goal).await?;
    let instance = get(&session.connection, &new.name).await?.into();
    let text = format!("instances/{} {}", new.name, goal.words());
    answer(instance, &text, session)
}

/// Creates, or lets the coordinator check what would be created.
pub(super) async fn send_create(
    connection: &Connection,
    new: &NewInstance,
) -> Result<fleet::Instance, CommandError> {
    let request = fleet::CreateInstanceRequest {
        instance_id: new.name.clone(),
        instance: Some(fleet::Instance {
            host: format!("hosts/{}", new.host),
            spec: Some(new.wanted.spec.clone()),
            ..fleet::Instance::default()
        }),
        validate_only: new.mode == Mode::Check,
        request_id: clock::request_id(),
    };
    let doing = format!("create instances/{}", new.name);
    let answer = connection
        .call(&doing, Repeat::Harmless, request, async |channel, request| {
            client(channel).create_instance(request).await
        })
        .await?;
    answer.instance.ok_or(CommandError::Answer { missing: "instance" })
}

impl NewInstance {
    /// Reads the files and variables that the flags name.
    pub(super) fn read(arguments: CreateArgs, sources: &Sources<'_>) -> Result<Self, CommandError> {
        let from_file = arguments
            .secret_file
            .into_iter()
            .map(|(name, file)| (name, SecretSource { file: Some(file.into()), env: None }));
        let from_env = arguments
            .secret_env
            .into_iter()
            .map(|(name, variable)| (name, SecretSource { file: None, env: Some(variable) }));
        let secrets: BTreeMap<String, SecretSource> = from_file.chain(from_env).collect();
        let document = SpecDocument {
            image: arguments.image,
            tier: arguments.tier,
            resources: Some(ResourcesDocument {
                memory: arguments.memory,
                cpu: arguments.cpu,
                pids: arguments.pids,
            })
            .filter(|resources| *resources != ResourcesDocument::default()),
            run_state: Some(if arguments.stopped {
                RunStateDocument::Stopped
            } else {
                RunStateDocument::Running
            }),
            env: arguments.env.into_iter().collect(),
            secrets_from: Some(secrets).filter(|secrets| !secrets.is_empty()),
            config_from: arguments.config_file.map(|file| FileSource { file }),
            identity_from: arguments.identity_file.map(|file| FileSource { file }),
            hostnames: arguments.hostname,
            allowed_origins: arguments.origin,
            ..SpecDocument::default()
        };
        let origins = Origins { directory: Path::new(""), variable: sources.variable };
        Ok(Self {
            name: id(&arguments.name).to_owned(),
            host: id(&arguments.host).to_owned(),
            wanted: content::wanted(&document, origins)?,
            mode: Mode::of(arguments.dry_run),
            wait: arguments.wait,
        })
    }
}

impl Verb {
    fn infinitive(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Restart => "restart",
            Self::Rebuild => "rebuild",
        }
    }

    fn until(self) -> Until {
        match self {
            Self::Stop => Until::Stopped,
            Self::Pause => Until::Paused,
            Self::Start | Self::Resume | Self::Restart | Self::Rebuild => Until::Running,
        }
    }

    /// The requests have the same fields and different types.
    async fn send(
        self,
        connection: &Connection,
        name: &str,
    ) -> Result<Option<fleet::Instance>, Box<CallError>> {
        let doing = format!("{} instances/{name}", self.infinitive());
        let (name, request_id) = (format!("instances/{name}"), clock::request_id());
        macro_rules! send {
            ($method:ident, $request:ident) => {{
                let request = fleet::$request { name, request_id, ..fleet::$request::default() };
                let answer = connection
                    .call(&doing, Repeat::Harmless, request, async |channel, request| {
                        client(channel).$method(request).await
                    })
                    .await?;
                Ok(answer.instance)
            }};
        }
        match self {
            Self::Start => send!(start_instance, StartInstanceRequest),
            Self::Stop => send!(stop_instance, StopInstanceRequest),
            Self::Pause => send!(pause_instance, PauseInstanceRequest),
            Self::Resume => send!(resume_instance, ResumeInstanceRequest),
            Self::Restart => send!(restart_instance, RestartInstanceRequest),
            Self::Rebuild => send!(rebuild_instance, RebuildInstanceRequest),
        }
    }
}

async fn list(host: Option<&str>, session: &mut Session<'_>) -> Result<(), CommandError> {
    let instances = all(&session.connection, host).await?;
    Ok(session.output.list(&instances)?)
}

/// Every instance, or every one of a host.
pub(super) async fn all(
    connection: &Connection,
    host: Option<&str>,
) -> Result<Vec<InstanceView>, CommandError> {
    let host = host.map(|host| format!("hosts/{}", id(host))).unwrap_or_default();
    let mut instances: Vec<InstanceView> = Vec::new();
    let mut page_token = String::new();
    loop {
        let request =
            fleet::ListInstancesRequest { host: host.clone(), page_size: PAGE_SIZE, page_token };
        let page = connection
            .call("list instances", Repeat::Harmless, request, async |channel, request| {
                client(channel).list_instances(request).await
            })
            .await?;
        instances.extend(page.instances.into_iter().map(InstanceView::from));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(instances);
        }
    }
}

async fn follow(arguments: WatchArgs, session: &mut Session<'_>) -> Result<(), CommandError> {
    #[derive(serde::Serialize)]
    struct Line<'a> {
        event: &'static str,
        instance: &'a InstanceView,
    }
    let scope = watch::scope_of(&arguments.names, arguments.host.as_deref());
    let patience = match arguments.until {
        Some(_) => Some(session.patience.unwrap_or(DEFAULT_PATIENCE)),
        None => session.patience,
    };
    let goal = arguments.until.map(Goal::from);
    let output = &mut session.output;
    let mut meter = Meter::new(Style::Plain);
    let mut show = |change: &Change, since: Duration| {
        let text = match output.format {
            Format::Table => {
                meter.show(change, since, output.out).map_err(OutputError::from)?;
                return Ok(output.out.flush().map_err(OutputError::from)?);
            }
            Format::Name => change.instance.resource(),
            Format::Json | Format::Yaml => String::new(),
        };
        let line = Line { event: change.kind, instance: &change.instance };
        Ok(output.streamed(&line, &text)?)
    };
    Ok(watch::follow(&session.connection, &scope, goal, patience, &mut show).await?)
}

async fn change(
    verb: Verb,
    arguments: &ChangeArgs,
    session: &mut Session<'_>,
) -> Result<(), CommandError> {
    let name = id(&arguments.name).to_owned();
    let changed = verb.send(&session.connection, &name).await?;
    let changed = changed.ok_or(CommandError::Answer { missing: "instance" })?;
    if !arguments.wait {
        let text = format!("instances/{name} will {}", verb.infinitive());
        return answer(changed.into(), &text, session);
    }
    let goal = Goal::from(verb.until());
    session.wait(std::slice::from_ref(&name), goal).await?;
    let text = format!("instances/{name} {}", goal.words());
    let instance = get(&session.connection, &name).await?.into();
    answer(instance, &text, session)
}

/// A sentence for people, the resource for programs, its name for `-o name`.
pub(super) fn answer(
    instance: InstanceView,
    text: &str,
    session: &mut Session<'_>,
) -> Result<(), CommandError> {
    let text = match session.output.format {
        Format::Name => instance.resource(),
        _ => text.to_owned(),
    };
    Ok(session.output.value(&instance, &text)?)
}

async fn gateway_token(name: &str, session: &mut Session<'_>) -> Result<(), CommandError> {
    let request = fleet::FetchGatewayTokenRequest { name: format!("instances/{name}") };
    let doing = format!("fetch the gateway token of instances/{name}");
    let answer = session
        .connection
        .call(&doing, Repeat::Harmless, request, async |channel, request| {
            client(channel).fetch_gateway_token(request).await
        })
        .await?;
    let view = GatewayTokenView { instance: name.to_owned(), token: answer.token };
    Ok(session.output.value(&view, &view.token)?)
}

async fn recovery_password(
    arguments: RecoveryArgs,
    session: &mut Session<'_>,
) -> Result<(), CommandError> {
    let name = id(&arguments.name);
    let request = fleet::FetchRecoveryPasswordRequest {
        name: format!("instances/{name}"),
        uid: arguments.uid.unwrap_or_default(),
    };
    let doing = format!("fetch the recovery password of instances/{name}");
    let answer = session
        .connection
        .call(&doing, Repeat::Harmless, request, async |channel, request| {
            client(channel).fetch_recovery_password(request).await
        })
        .await?;
    let repository = format!("{REPOSITORIES}/{name}");
    session.remark(&format!(
        "warning: this is a secret: whoever has it reads every snapshot of instances/{name}\n\
         use it with plain restic on the instance's host, or wherever a copy of the repository lies;\n\
         restic asks for it:\n  \
         restic -r {repository} snapshots\n  \
         restic -r {repository} restore SNAPSHOT --target DIRECTORY"
    ))?;
    let view = RecoveryPasswordView {
        instance: name.to_owned(),
        recovery_password: answer.recovery_password,
        repository,
    };
    Ok(session.output.value(&view, &view.recovery_password)?)
}
