//! From a path to the service that answers it, past the role table and the deadlines.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;

use crate::auth::{Caller, Kind, Method, authorise};

/// An answer on its way.
pub type Answer = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

type Route = Arc<dyn Fn(Request<Body>) -> Answer + Send + Sync>;

/// The status header of gRPC over HTTP/2.
const GRPC_STATUS: &str = "grpc-status";
/// What tonic answers to a message above the bound; no method of ours answers it otherwise.
const OUT_OF_RANGE: &str = "11";
/// What other implementations and our protos say in this case.
const RESOURCE_EXHAUSTED: HeaderValue = HeaderValue::from_static("8");

/// All services by name.
#[derive(Clone, Default)]
pub struct Routes {
    services: Arc<BTreeMap<&'static str, Route>>,
}

/// Collects services.
#[derive(Default)]
pub struct RoutesBuilder {
    services: BTreeMap<&'static str, Route>,
}

impl RoutesBuilder {
    /// Adds a service under its own name.
    #[must_use]
    pub fn with<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
        S: NamedService + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        let route = move |request| -> Answer {
            let mut service = service.clone();
            Box::pin(async move {
                let answered = service.call(request).await;
                answered.unwrap_or_else(|never| match never {})
            })
        };
        self.services.insert(S::NAME, Arc::new(route));
        self
    }

    /// Done.
    #[must_use]
    pub fn build(self) -> Routes {
        Routes { services: Arc::new(self.services) }
    }
}

impl Routes {
    /// Answers a request, or says why not; a unary call must be answered within `deadline`.
    pub async fn answer(
        &self,
        caller: Arc<Caller>,
        deadline: Duration,
        mut request: Request<Body>,
    ) -> Response<Body> {
        let path = request.uri().path().strip_prefix('/').unwrap_or_default().to_owned();
        let method = match authorise(&caller, &path) {
            Ok(Some(method)) => method,
            Ok(None) => return Status::unimplemented(format!("no method {path}")).into_http(),
            Err(refusal) => return Status::from(refusal).into_http(),
        };
        let service = method.name.split('/').next().unwrap_or_default();
        let Some(route) = self.services.get(service) else {
            return Status::unimplemented(format!("no method {path}")).into_http();
        };
        request.extensions_mut().insert(caller);
        call(route, method, deadline, request).await
    }
}

async fn call(
    route: &Route,
    method: &Method,
    deadline: Duration,
    request: Request<Body>,
) -> Response<Body> {
    let answer = route(request);
    let mut response = match method.kind {
        Kind::Stream => answer.await,
        Kind::Unary => match tokio::time::timeout(deadline, answer).await {
            Ok(response) => response,
            Err(_elapsed) => {
                return Status::deadline_exceeded(format!(
                    "{} took longer than {} s",
                    method.name,
                    deadline.as_secs()
                ))
                .into_http();
            }
        },
    };
    let headers = response.headers_mut();
    if headers.get(GRPC_STATUS).is_some_and(|status| status == OUT_OF_RANGE) {
        headers.insert(GRPC_STATUS, RESOURCE_EXHAUSTED);
    }
    response
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.services.keys()).finish()
    }
}

impl fmt::Debug for RoutesBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.services.keys()).finish()
    }
}
