//! Every call of the back office as data: method, path, who may, and what runs. What is not in the
//! table does not exist, and every entry says who may: nothing is open by omission.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::routing::MethodFilter;

use super::auth::{Needs, Role};
use super::call::Call;
use super::reply::Answer;
use super::{Api, buyer, claims, orders, payments, ready, sales, steps, stock};
use crate::api::steps::Step;

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
    GET "/admin/v1/claims" VIEWER => claims::list,
    POST "/admin/v1/claims/{order}/resolve" OPERATOR => claims::resolve,
    GET "/internal/v1/orders/{order}" Needs::Watcher => buyer::get,
    DELETE "/internal/v1/orders/{order}" Needs::Buyer => buyer::cancel,
    POST "/internal/v1/orders/{order}/claim" Needs::Buyer => claims::note,
    POST "/internal/v1/payments/callback" Needs::Edge => payments::callback,
    GET "/internal/v1/ready" Needs::Edge => ready::get,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sluice_shared::verdict::Code;

    use super::*;

    const DOCUMENT: &str = include_str!("../../../docs/openapi.yaml");

    /// `METHOD path` → its `x-role`, as far as the document says one.
    fn documented() -> BTreeMap<String, Option<String>> {
        let (mut path, mut call, mut calls) = ("", String::new(), BTreeMap::new());
        let body = DOCUMENT.lines().skip_while(|line| *line != "paths:").skip(1);
        for line in body.take_while(|line| line.is_empty() || line.starts_with(' ')) {
            let depth = line.len() - line.trim_start().len();
            let word = line.trim().trim_end_matches(':');
            match depth {
                2 => path = word,
                4 if ["get", "post", "patch", "delete"].contains(&word) => {
                    call = format!("{} {path}", word.to_uppercase());
                    calls.insert(call.clone(), None);
                }
                6 => {
                    if let Some(role) = word.strip_prefix("x-role: ") {
                        calls.insert(call.clone(), Some(role.to_owned()));
                    }
                }
                _ => {}
            }
        }
        calls
    }

    #[test]
    fn the_document_has_every_route_with_its_role_and_no_other() {
        let ours = |call: &String| call.contains(" /admin/v1/") || call.contains(" /internal/v1/");
        let documented: BTreeMap<_, _> = documented().into_iter().filter(|(call, _)| ours(call)).collect();
        let routed = ROUTES.iter().map(|route| {
            let role = match route.needs {
                Needs::Role(role) => Some(role.as_str().to_owned()),
                Needs::Edge | Needs::Watcher | Needs::Buyer => None,
            };
            (format!("{} {}", route.method, route.path), role)
        });
        assert_eq!(documented, routed.collect());
    }

    #[test]
    fn the_document_has_every_code_and_no_dangling_reference() {
        for code in Code::ALL {
            let line = format!("            - {}\n", code.as_str());
            assert!(DOCUMENT.contains(&line), "{}", code.as_str());
        }
        for (at, _) in DOCUMENT.match_indices("#/components/") {
            let rest = &DOCUMENT[at + "#/components/".len()..];
            let name = rest.split('\'').next().unwrap_or_default();
            let (kind, name) = name.split_once('/').unwrap_or_default();
            let section = DOCUMENT.split_once(&format!("\n  {kind}:\n")).map_or("", |(_, section)| section);
            let defined = section.lines().take_while(|line| line.is_empty() || line.starts_with("    "));
            let found = defined.into_iter().any(|line| line.starts_with(&format!("    {name}:")));
            assert!(found, "{kind}/{name}");
        }
    }
}
