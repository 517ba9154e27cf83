//! Every call of the back office as data: method, path, who may, and what runs. What is not in the
//! table does not exist, and every entry says who may: nothing is open by omission.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::routing::MethodFilter;

use super::auth::Role;
use super::call::Call;
use super::reply::Answer;
use super::{Api, buyer, events, orders, payments, sales, steps, stock};
use crate::api::steps::Step;

/// Who may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Staff with at least this role.
    Role(Role),
    /// An edge.
    Edge,
    /// An edge, for a buyer that it names.
    Buyer,
}

/// What a call will come to.
pub type Running = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// One call.
#[derive(Clone, Copy)]
pub struct Route {
    /// `GET`, `POST`, …
    pub method: &'static str,
    /// The path with its parameters in braces.
    pub path: &'static str,
    /// Who may.
    pub needs: Needs,
    pub(super) run: fn(Arc<Api>, Call) -> Running,
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

impl Route {
    pub(super) fn filter(&self) -> MethodFilter {
        match self.method {
            "POST" => MethodFilter::POST,
            "PATCH" => MethodFilter::PATCH,
            "DELETE" => MethodFilter::DELETE,
            _ => MethodFilter::GET,
        }
    }
}

macro_rules! routes {
    ($($method:ident $path:literal $needs:expr => $run:expr,)*) => {
        /// All of them.
        pub const ROUTES: &[Route] = &[$(Route {
            method: stringify!($method),
            path: $path,
            needs: $needs,
            run: |api, call| Box::pin($run(api, call)),
        },)*];
    };
}

const VIEWER: Needs = Needs::Role(Role::Viewer);
const OPERATOR: Needs = Needs::Role(Role::Operator);
const ADMIN: Needs = Needs::Role(Role::Admin);

routes! {
    POST "/admin/v1/sales" ADMIN => sales::create,
    GET "/admin/v1/sales" VIEWER => sales::list,
    GET "/admin/v1/sales/{sale}" VIEWER => sales::get,
    PATCH "/admin/v1/sales/{sale}" ADMIN => sales::patch,
    POST "/admin/v1/sales/{sale}/preload" OPERATOR => (|api, call| steps::step(api, call, Step::Preload)),
    POST "/admin/v1/sales/{sale}/open" OPERATOR => (|api, call| steps::step(api, call, Step::Open)),
    POST "/admin/v1/sales/{sale}/pause" OPERATOR => (|api, call| steps::step(api, call, Step::Pause)),
    POST "/admin/v1/sales/{sale}/resume" OPERATOR => (|api, call| steps::step(api, call, Step::Resume)),
    POST "/admin/v1/sales/{sale}/close" OPERATOR => (|api, call| steps::step(api, call, Step::Close)),
    POST "/admin/v1/sales/{sale}/reopen" OPERATOR => (|api, call| steps::step(api, call, Step::Reopen)),
    POST "/admin/v1/sales/{sale}/stock" OPERATOR => stock::change,
    GET "/admin/v1/sales/{sale}/audit" VIEWER => orders::audit,
    GET "/admin/v1/orders" VIEWER => orders::list,
    GET "/admin/v1/orders/{order}" VIEWER => orders::get,
    GET "/admin/v1/orders/{order}/explain" VIEWER => orders::explain,
    POST "/admin/v1/orders/{order}/refund" ADMIN => orders::refund,
    GET "/internal/v1/orders/{order}" Needs::Buyer => buyer::get,
    DELETE "/internal/v1/orders/{order}" Needs::Buyer => buyer::cancel,
    GET "/internal/v1/orders/{order}/events" Needs::Buyer => events::stream,
    POST "/internal/v1/payments/callback" Needs::Edge => payments::callback,
}
