//! Join tokens: create, list, delete.

use std::collections::BTreeMap;
use std::time::Duration;

use claw_proto::convert::duration_to_wire;
use claw_proto::fleet::v1 as fleet;
use claw_proto::fleet::v1::join_token_service_client::JoinTokenServiceClient;

use super::Session;
use crate::cli::{Format, TokenCommand, TokenForm};
use crate::clock;
use crate::connection::{PAGE_SIZE, Repeat};
use crate::failure::CommandError;
use crate::view::token::{JoinTokenView, NewTokenView};
use crate::view::{Resource as _, id};

pub(super) async fn run(
    command: TokenCommand,
    session: &mut Session<'_>,
) -> Result<(), CommandError> {
    match command {
        TokenCommand::Create { host, ttl, print } => create(id(&host), ttl, print, session).await,
        TokenCommand::List => list(session).await,
        TokenCommand::Delete { token } => delete(id(&token), session).await,
    }
}

async fn create(
    host: &str,
    ttl: Option<Duration>,
    print: TokenForm,
    session: &mut Session<'_>,
) -> Result<(), CommandError> {
    let request = fleet::CreateJoinTokenRequest {
        host: format!("hosts/{host}"),
        ttl: ttl.map(duration_to_wire),
        request_id: clock::request_id(),
        ..fleet::CreateJoinTokenRequest::default()
    };
    let doing = format!("create a join token for hosts/{host}");
    // An answer that was lost cannot be had again: a second token is made by a second command.
    let made = session
        .connection
        .call(&doing, Repeat::Never, request, async |channel, request| {
            JoinTokenServiceClient::new(channel).create_join_token(request).await
        })
        .await?;
    let stored = made.join_token.ok_or(CommandError::Answer { missing: "join token" })?;
    let view = NewTokenView {
        stored: stored.into(),
        join_command: format!(
            "echo '{}' | {}",
            made.token,
            join_arguments(&session.connection.endpoint().to_string(), host)
        ),
        token: made.token,
    };
    let end = view.stored.expire_time.clone().unwrap_or_default();
    session.remark(&format!("good for one join of hosts/{host} until {end}; not shown again"))?;
    if print == TokenForm::Token {
        let endpoint = session.connection.endpoint();
        let command = join_arguments(&endpoint.to_string(), host);
        session.remark(&format!("on the host, with the token on standard input: {command}"))?;
    }
    let text = match (session.output.format, print) {
        (Format::Name, _) => view.stored.resource(),
        (_, TokenForm::Token) => view.token.clone(),
        (_, TokenForm::JoinCommand) => view.join_command.clone(),
    };
    Ok(session.output.value(&view, &text)?)
}

/// The command that joins a host. The token goes through standard input, because arguments can be
/// read by everybody on the host.
fn join_arguments(endpoint: &str, host: &str) -> String {
    format!("clawd join --coordinator {endpoint} --host-name {host} --token-file -")
}

async fn list(session: &mut Session<'_>) -> Result<(), CommandError> {
    let mut tokens: Vec<JoinTokenView> = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = fleet::ListJoinTokensRequest { page_size: PAGE_SIZE, page_token };
        let page = session
            .connection
            .call("list join tokens", Repeat::Harmless, request, async |channel, request| {
                JoinTokenServiceClient::new(channel).list_join_tokens(request).await
            })
            .await?;
        tokens.extend(page.join_tokens.into_iter().map(JoinTokenView::from));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(session.output.list(&tokens)?);
        }
    }
}

async fn delete(token: &str, session: &mut Session<'_>) -> Result<(), CommandError> {
    let resource = format!("joinTokens/{token}");
    let request = fleet::DeleteJoinTokenRequest {
        name: resource.clone(),
        request_id: clock::request_id(),
        ..fleet::DeleteJoinTokenRequest::default()
    };
    let doing = format!("delete {resource}");
    session
        .connection
        .call(&doing, Repeat::Harmless, request, async |channel, request| {
            JoinTokenServiceClient::new(channel).delete_join_token(request).await
        })
        .await?;
    let text = match session.output.format {
        Format::Name => resource.clone(),
        _ => format!("{resource} deleted"),
    };
    let value = BTreeMap::from([("resource", resource.as_str()), ("outcome", "deleted")]);
    Ok(session.output.value(&value, &text)?)
}
