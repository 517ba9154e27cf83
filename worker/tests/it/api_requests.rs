//! Requests that are wrong before any handler sees them.

use sluice_worker::api::route::ROUTES;

use super::api_world::{ADMIN_TOKEN, World, a_sale};

fn bearer() -> String {
    format!("Bearer {ADMIN_TOKEN}")
}

#[tokio::test]
async fn unknown_addresses_and_methods_are_problems() {
    let world = World::start().await;
    let unbuilt =
        ["/admin/v1/transactions", "/admin/v1/dead-letters", "/admin/v1/archives", "/admin/v1/settings"];
    for path in
        ["/", "/admin/v1", "/admin/v1/sales/", "/admin/v1/sales/a/b", "/v1/sales"].iter().chain(&unbuilt)
    {
        world.send("GET", path, &[("authorization", &bearer())], b"").await.problem(404, "not_found");
    }
    let reply = world.send("DELETE", "/admin/v1/sales", &[("authorization", &bearer())], b"").await;
    reply.problem(405, "method_not_allowed");
    let mut allow: Vec<&str> = reply.headers["allow"].split(',').map(str::trim).collect();
    allow.sort_unstable();
    assert_eq!(allow, ["GET", "HEAD", "POST"]);
    for route in ROUTES {
        let path = route.path.replace(['{', '}'], "");
        world.send("PUT", &path, &[], b"").await.problem(405, "method_not_allowed");
    }
}

#[tokio::test]
async fn every_answer_has_a_request_id_and_keeps_a_good_one() {
    let world = World::start().await;
    let reply = world.send("GET", "/nowhere", &[("x-request-id", "edge-17")], b"").await;
    assert_eq!(reply.headers["x-request-id"], "edge-17");
    let reply = world
        .send("GET", "/admin/v1/sales", &[("authorization", &bearer()), ("x-request-id", "a b")], b"")
        .await;
    reply.expect(200);
    assert_eq!(reply.headers["x-request-id"].len(), 32);
}

#[tokio::test]
async fn bodies_are_json_of_64_kib_at_the_most_and_not_encoded() {
    let world = World::start().await;
    let token = bearer();
    let post = async |headers: &[(&str, &str)], body: &[u8]| {
        let headers = [&[("authorization", token.as_str())], headers].concat();
        world.send("POST", "/admin/v1/sales", &headers, body).await
    };
    post(&[("content-type", "text/plain")], b"{}").await.problem(415, "unsupported_media_type");
    post(&[("content-encoding", "gzip")], b"{}").await.problem(415, "unsupported_media_type");
    let body = a_sale("typed").to_string();
    post(&[("content-type", "application/json; charset=utf-8")], body.as_bytes()).await.expect(201);
    // Without a body there is nothing to judge.
    let reply = post(&[("content-type", "text/plain")], b"").await;
    assert_eq!(reply.problem(400, "bad_request").as_deref(), Some("body"));
    post(&[], &[b' '; 65 * 1024]).await.problem(413, "body_too_large");
    post(&[], &[b' '; 64 * 1024]).await.problem(400, "bad_request");
    let chunk = format!("{:x}\r\n{}\r\n", 40 * 1024, " ".repeat(40 * 1024));
    let head = format!(
        "POST /admin/v1/sales HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: {token}\r\n\
         transfer-encoding: chunked\r\n\r\n"
    );
    world.raw(format!("{head}{chunk}{chunk}0\r\n\r\n").as_bytes()).await.problem(413, "body_too_large");
    let small = format!("{:x}\r\n{}\r\n", body.len(), body.replace("typed", "chunk"));
    world.raw(format!("{head}{small}0\r\n\r\n").as_bytes()).await.expect(201);
}

#[tokio::test]
async fn a_parameter_without_a_name_can_be_read_in_the_answer() {
    let world = World::start().await;
    for (query, field) in [("=1", "[\"\"]"), ("=1&=2", "[\"\"]"), ("a%20b=1", "[\"a b\"]"), ("a=1", "a")] {
        let path = format!("/admin/v1/sales?{query}");
        let reply = world.send("GET", &path, &[("authorization", &bearer())], b"").await;
        assert_eq!(reply.problem(400, "bad_request").as_deref(), Some(field), "{query}");
    }
}

#[tokio::test]
async fn two_authorization_fields_are_a_bad_request() {
    let world = World::start().await;
    let token = bearer();
    let twice = [("authorization", token.as_str()), ("authorization", token.as_str())];
    let reply = world.send("GET", "/admin/v1/sales", &twice, b"").await;
    assert_eq!(reply.problem(400, "bad_request").as_deref(), Some("Authorization"));
}

#[tokio::test]
async fn a_store_that_is_away_is_unavailable_and_never_empty() {
    let world = World::start().await;
    assert_eq!(world.edge("GET", "/ready", "anybody").await.expect(200)["ready"], true);
    world.store.close().await;
    world.edge("GET", "/ready", "anybody").await.problem(503, "unavailable");
    for path in ["/sales", "/sales/a", "/orders"] {
        let reply = world.admin("GET", path, serde_json::Value::Null).await;
        reply.problem(503, "unavailable");
        assert!(matches!(reply.headers["retry-after"].as_str(), "1" | "2"));
    }
}

#[tokio::test]
async fn nothing_is_served_behind_a_request_that_is_malformed() {
    let world = World::start().await;
    let (bearer, hidden) = (bearer(), a_sale("hidden").to_string());
    let hidden = format!(
        "POST /admin/v1/sales HTTP/1.1\r\nhost: test\r\nauthorization: {bearer}\r\ncontent-length: {}\r\n\r\n{hidden}",
        hidden.len()
    );
    for (fields, body) in [
        ("transfer-encoding: chunked", "\r\n{}\r\n0\r\n\r\n"),
        ("transfer-encoding: chunked", ";a\r\n{}\r\n0\r\n\r\n"),
        ("transfer-encoding: chunked", "2\r\n{}0\r\n\r\n"),
        ("transfer-encoding: chunked", "0x2\r\n{}\r\n0\r\n\r\n"),
        ("transfer-encoding: gzip", "2\r\n{}\r\n0\r\n\r\n"),
        ("content-length: 2\r\ncontent-length: 3", "{}"),
    ] {
        for authorization in ["", &format!("authorization: {bearer}\r\n")] {
            let head =
                format!("POST /admin/v1/sales HTTP/1.1\r\nhost: test\r\n{authorization}{fields}\r\n\r\n");
            // Read to the end of the connection, which comes by itself.
            let answers = world.raw(format!("{head}{body}{hidden}").as_bytes()).await;
            assert!(answers.status >= 400, "{fields} {body:?}");
            let behind = String::from_utf8_lossy(&answers.body).contains("HTTP/1.1 ");
            assert!(!behind, "{fields} {body:?}: {:?}", String::from_utf8_lossy(&answers.body));
        }
    }
    world.admin("GET", "/sales/hidden", serde_json::Value::Null).await.problem(404, "not_found");
}
