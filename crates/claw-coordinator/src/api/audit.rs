//! `claw.fleet.v1.AuditService`.

use claw_proto::fleet::v1::audit_service_server::AuditService;
use claw_proto::fleet::v1::{self as fleet};
use tonic::{Request, Response, Status};

use crate::fleet::Fleet;
use crate::page::Page;
use crate::store::audit;

/// The service.
#[derive(Debug, Clone)]
pub struct AuditApi {
    /// What it serves.
    pub fleet: Fleet,
}

#[tonic::async_trait]
impl AuditService for AuditApi {
    async fn list_audit_entries(
        &self,
        request: Request<fleet::ListAuditEntriesRequest>,
    ) -> Result<Response<fleet::ListAuditEntriesResponse>, Status> {
        let request = request.into_inner();
        let list = format!("auditEntries {}", request.resource.replace('\n', " "));
        let page = Page::parse(list, request.page_size, &request.page_token)?;
        let (rows, next_page_token) = self
            .fleet
            .store
            .read_long(move |connection, _keys| audit::list(connection, &request.resource, &page))
            .await?;
        let audit_entries = rows.into_iter().map(crate::view::audit_entry).collect();
        Ok(Response::new(fleet::ListAuditEntriesResponse { audit_entries, next_page_token }))
    }
}
