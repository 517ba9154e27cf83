use super::*;
use crate::client::outcome::{MALFORMED, SOLD_OUT};

const ID: &str = "0190f3a2b4c57d8e9f00112233445566-14-0";

fn accepted() -> String {
    let body = format!("{{\"order_id\": \"{ID}\",\"state\":\"accepted\"}}");
    format!(
        "HTTP/1.1 202 Accepted\r\nX-Request-Id: a\r\nLocation: /v1/orders/{ID}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn refused(chunks: &[&str]) -> String {
    let chunks: String = chunks.iter().map(|chunk| format!("{:x}\r\n{chunk}\r\n", chunk.len())).collect();
    format!(
        "HTTP/1.1 409 Conflict\r\ncontent-type: application/problem+json\r\nx-request-id: a\r\n\
         Transfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n"
    )
}

/// Feeds a text cut at one place.
fn read(text: &str, cut: usize) -> Reader {
    let mut reader = Reader::default();
    let (first, second) = text.as_bytes().split_at(cut);
    if cut > 0 {
        assert!(!reader.feed(first).unwrap(), "whole already at {cut}");
    }
    assert!(reader.feed(second).unwrap(), "cut at {cut}");
    reader
}

#[test]
fn an_answer_is_read_wherever_it_is_cut() {
    let text = accepted();
    for cut in 0..text.len() {
        let reader = read(&text, cut);
        let answer = reader.answer();
        assert_eq!((answer.status, answer.outcome, answer.fault), (202, ACCEPTED, None));
        assert_eq!(answer.order, OrderId::parse(ID));
        assert!(!reader.is_last());
    }
}

#[test]
fn a_chunked_answer_is_read_wherever_it_is_cut() {
    let text = refused(&["{\"code\":\"so", "ld_out\",\"status\":409}"]);
    for cut in 0..text.len() {
        let reader = read(&text, cut);
        assert_eq!(reader.answer().outcome, SOLD_OUT);
        assert_eq!(reader.answer().fault, None);
        assert_eq!(reader.answer().body, br#"{"code":"sold_out","status":409}"#);
    }
}

#[test]
fn a_replay_is_told_from_a_first_acceptance() {
    let text = accepted().replace("X-Request-Id", "Idempotent-Replayed: true\r\nX-Request-Id");
    assert_eq!(read(&text, 0).answer().outcome, REPLAYED);
    let text = accepted().replace("accepted\"}", "pending\"} ");
    assert_eq!(read(&text, 0).answer().outcome, PENDING);
}

#[test]
fn what_the_contract_demands_and_an_answer_lacks_is_named() {
    let fault = |text: &str| read(text, 0).answer().fault;
    assert_eq!(fault(&accepted().replace("X-Request-Id", "X-Other")), Some("no X-Request-Id"));
    assert_eq!(fault(&accepted().replace("Location", "Elsewhere")), Some("no Location"));
    assert_eq!(fault(&accepted().replace("order_id", "order_no")), Some("no order_id"));
    let refusal = refused(&["{\"code\":\"sold_out\"}"]);
    assert_eq!(fault(&refusal.replace("problem+json", "json")), Some("not application/problem+json"));
    let unheard = Some("a status and code that the contract does not have");
    assert_eq!(fault(&refusal.replace("409 Conflict", "410 Gone")), unheard);
    let limited = refusal.replace("409 Conflict", "429 X").replace("sold_out", "rate_limited");
    assert_eq!(fault(&limited.replace("13\r\n", "17\r\n")), Some("no Retry-After"));
}

#[test]
fn what_is_no_answer_is_malformed() {
    let bad = |text: &str| Reader::default().feed(text.as_bytes()).is_err();
    assert!(bad("SSH-2.0-OpenSSH\r\n"));
    assert!(bad(&format!("{}GET", accepted())));
    assert!(bad(&format!("{}x", refused(&["{}"]))));
    assert!(bad(&refused(&["{}"]).replace("2\r\n{}", "1\r\n{}")));
    assert!(bad(&accepted().replace("Content-Length: ", "Content-Length: x")));
    assert_eq!(Answer::none(MALFORMED).status, 0);
}

#[test]
fn an_answer_without_a_length_ends_with_its_connection() {
    let mut reader = Reader::default();
    assert!(!reader.feed(b"HTTP/1.0 200 OK\r\nX-Request-Id: 1\r\n\r\n{}").unwrap());
    assert!(reader.close() && reader.is_last());
    assert_eq!(reader.answer().outcome, OK);
}

#[test]
fn only_a_member_is_taken_for_one() {
    assert_eq!(json_text(br#"{"title":"code","code":"x"}"#, "code"), Some("x"));
    assert_eq!(json_text(br#"{"code":7}"#, "code"), None);
    assert_eq!(json_text(br#"{"a":"b"}"#, "code"), None);
}
