//! Who may do what, generated from the table of routes: default deny.

use serde_json::{Value, json};
use sluice_shared::clock::Millis;
use sluice_shared::jwt::sign_hs256;
use sluice_worker::api::auth::Needs;
use sluice_worker::api::auth::Role;
use sluice_worker::api::route::{ROUTES, Route};

use super::api_world::{ADMIN_JWT_SECRET, ADMIN_TOKEN, EDGE_SECRET, World, staff};

/// The path with ids that nothing has.
fn path(route: &Route) -> String {
    let order = "0190163d8694739b9f8a1c5c2b2b2b2b-zz-0";
    route.path.replace("{sale}", "nothing").replace("{order}", order)
}

async fn call(world: &World, route: &Route, authorization: &str) -> u16 {
    let headers = [("authorization", authorization), ("x-sluice-user", "alice")];
    world.send(route.method, &path(route), &headers, b"").await.status
}

#[tokio::test]
async fn every_route_admits_the_roles_of_the_table_and_nobody_else() {
    let world = World::start().await;
    let edge = format!("Bearer {EDGE_SECRET}");
    let admin = format!("Bearer {ADMIN_TOKEN}");
    for route in ROUTES {
        let mut callers = vec![(edge.clone(), None), (admin.clone(), Some(Role::Admin))];
        callers.extend(Role::ALL.map(|role| (staff(role.as_str()), Some(role))));
        for (authorization, role) in callers {
            let status = call(&world, route, &authorization).await;
            match (route.needs, role) {
                (Needs::Role(least), Some(role)) if role >= least => {
                    assert!(![401, 403].contains(&status), "{route:?} refuses {role:?}: {status}");
                }
                (Needs::Role(_), Some(role)) => assert_eq!(status, 403, "{route:?} as {role:?}"),
                (Needs::Edge | Needs::Watcher | Needs::Buyer, None) => {
                    // The callback's own 401 says bad_signature.
                    let good = status != 403 && (status != 401 || route.path.ends_with("callback"));
                    assert!(good, "{route:?} refuses the edge: {status}");
                }
                _ => assert_eq!(status, 401, "{route:?} with another's key"),
            }
        }
    }
}

#[tokio::test]
async fn what_is_no_key_of_ours_is_unauthenticated_everywhere() {
    let world = World::start().await;
    let exp = Millis::now().seconds() + 60;
    let jwt = |secret: &str, claims: Value| format!("Bearer {}", sign_hs256(secret, &claims));
    let buyer = json!({"sub": "alice", "exp": exp});
    let strangers = [
        "Bearer".to_owned(),
        "Bearer wrong".to_owned(),
        format!("Basic {ADMIN_TOKEN}"),
        jwt("the jwt secret of buyers", buyer.clone()),
        // A buyer's JWT is none even when both secrets are the same by mistake.
        jwt(ADMIN_JWT_SECRET, buyer),
        jwt(ADMIN_JWT_SECRET, json!({"sub": "x", "aud": "shop", "role": "admin", "exp": exp})),
        jwt("another secret", json!({"sub": "x", "aud": "sluice-admin", "role": "admin", "exp": exp})),
        jwt(ADMIN_JWT_SECRET, json!({"sub": "x", "aud": "sluice-admin", "role": "admin", "exp": 1})),
        jwt(ADMIN_JWT_SECRET, json!({"sub": "x", "aud": "sluice-admin", "role": "admin"})),
    ];
    for route in ROUTES {
        for stranger in &strangers {
            assert_eq!(call(&world, route, stranger).await, 401, "{route:?} with {stranger}");
        }
        let reply = world.send(route.method, &path(route), &[], b"").await;
        reply.problem(401, "unauthenticated");
        assert_eq!(reply.headers["www-authenticate"], "Bearer");
    }
}

#[tokio::test]
async fn a_jwt_without_a_known_role_is_forbidden() {
    let world = World::start().await;
    let exp = Millis::now().seconds() + 60;
    for role in [Value::Null, json!("root"), json!(""), json!("Admin")] {
        let claims = json!({"sub": "x", "aud": "sluice-admin", "role": role, "exp": exp});
        let jwt = format!("Bearer {}", sign_hs256(ADMIN_JWT_SECRET, &claims));
        world.send("GET", "/admin/v1/sales", &[("authorization", &jwt)], b"").await.problem(403, "forbidden");
    }
}
