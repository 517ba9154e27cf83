#![allow(clippy::unwrap_used)]

use super::*;

fn amqp(kind: u8, channel: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[kind, 0, channel][..], &length, payload, &[0xCE]].concat()
}

fn method_of(id: [u8; 4]) -> Vec<u8> {
    amqp(1, 1, &[&id[..], b"arguments"].concat())
}

/// Method, header and two bodies.
fn publish() -> Vec<u8> {
    let header = [&[0, 60, 0, 0][..], &11_u64.to_be_bytes(), &[0, 0]].concat();
    [method_of([0, 60, 0, 40]), amqp(2, 1, &header), amqp(3, 1, b"hello "), amqp(3, 1, b"world")].concat()
}

/// Feeds the stream in pieces of each size: the frames must not depend on it.
fn frames(protocol: Protocol, way: Way, stream: &[u8]) -> Vec<(usize, Option<Frame>)> {
    let cut = |size: usize| {
        let mut framer = Framer::new(protocol, way);
        let pieces: Vec<Piece> = stream.chunks(size).flat_map(|bytes| framer.feed(bytes)).collect();
        let carried: Vec<u8> = pieces.iter().flat_map(|piece| piece.bytes.clone()).collect();
        assert_eq!(carried, stream);
        pieces.into_iter().map(|piece| (piece.bytes.len(), piece.frame)).collect::<Vec<_>>()
    };
    let whole = cut(stream.len());
    for size in [1, 2, 3, 7, 64] {
        assert_eq!(cut(size), whole, "in pieces of {size}");
    }
    whole
}

#[test]
fn commands_of_redis_are_told_apart() {
    let script = b"*3\r\n$7\r\nEVALSHA\r\n$3\r\nabc\r\n$1\r\n0\r\n";
    let ping = b"*1\r\n$4\r\nPING\r\n";
    let found = frames(Protocol::Redis, Way::Up, &[&script[..], ping, script].concat());
    let script = (script.len(), Some(Frame::Script));
    assert_eq!(found, [script, (ping.len(), None), script]);
}

#[test]
fn a_message_is_one_piece_with_all_its_frames() {
    let begin = b"AMQP\x00\x00\x09\x01".to_vec();
    let ack = method_of([0, 60, 0, 80]);
    let stream = [begin.clone(), publish(), ack.clone(), amqp(8, 0, b""), publish()].concat();
    let found = frames(Protocol::Amqp, Way::Up, &stream);
    let publish = (publish().len(), Some(Frame::Publish));
    assert_eq!(found, [(8, None), publish, (ack.len(), Some(Frame::Ack)), (8, None), publish]);
}

#[test]
fn the_same_method_downwards_is_a_confirm() {
    let confirm = method_of([0, 60, 0, 80]);
    assert_eq!(frames(Protocol::Amqp, Way::Down, &confirm), [(confirm.len(), Some(Frame::Confirm))]);
}

#[test]
fn an_empty_message_has_no_body() {
    let header = amqp(2, 1, &[&[0, 60, 0, 0][..], &0_u64.to_be_bytes(), &[0, 0]].concat());
    let deliver = [method_of([0, 60, 0, 60]), header].concat();
    assert_eq!(frames(Protocol::Amqp, Way::Down, &deliver), [(deliver.len(), Some(Frame::Deliver))]);
}

#[test]
fn a_message_with_frames_of_another_channel_between_is_nobodys_target() {
    let header = amqp(2, 1, &[&[0, 60, 0, 0][..], &2_u64.to_be_bytes(), &[0, 0]].concat());
    let stream = [method_of([0, 60, 0, 60]), header, amqp(8, 0, b""), amqp(3, 1, b"ab")].concat();
    assert_eq!(frames(Protocol::Amqp, Way::Down, &stream), [(stream.len(), None)]);
}

#[test]
fn what_is_not_of_the_protocol_is_carried_all_the_same() {
    for (protocol, stream) in [(Protocol::Redis, &b"PING\r\n"[..]), (Protocol::Amqp, b"HTTP/1.1 200 OK\r\n")]
    {
        let mut framer = Framer::new(protocol, Way::Up);
        let carried: Vec<u8> = framer.feed(stream).iter().flat_map(|piece| piece.bytes.clone()).collect();
        assert_eq!(carried, stream);
    }
}
