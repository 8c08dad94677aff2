//! Audit entries, newest first.

use claw_proto::fleet::v1 as fleet;
use claw_proto::fleet::v1::audit_service_client::AuditServiceClient;

use super::Session;
use crate::cli::AuditArgs;
use crate::connection::{PAGE_SIZE, Repeat};
use crate::failure::CommandError;
use crate::view::token::AuditView;

pub(super) async fn run(
    arguments: AuditArgs,
    session: &mut Session<'_>,
) -> Result<(), CommandError> {
    let limit = if arguments.limit == 0 { usize::MAX } else { arguments.limit };
    let mut entries: Vec<AuditView> = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = fleet::ListAuditEntriesRequest {
            resource: arguments.resource.clone().unwrap_or_default(),
            page_size: i32::try_from(limit).unwrap_or(PAGE_SIZE).min(PAGE_SIZE),
            page_token,
        };
        let page = session
            .connection
            .call("list audit entries", Repeat::Harmless, request, async |channel, request| {
                AuditServiceClient::new(channel).list_audit_entries(request).await
            })
            .await?;
        entries.extend(page.audit_entries.into_iter().map(AuditView::from));
        page_token = page.next_page_token;
        if page_token.is_empty() || entries.len() >= limit {
            entries.truncate(limit);
            return Ok(session.output.list(&entries)?);
        }
    }
}
