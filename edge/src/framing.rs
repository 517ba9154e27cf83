//! Where the body of a request ends (RFC 9112 §6 and §7.1), read more strictly than any server does
//! that might stand before or behind us: who finds the end elsewhere finds a request that nobody sent.

/// What a head says about its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// None follows.
    Nothing,
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
}

/// Digits of a chunk's size at the most: far more than any body may have.
const DIGITS: u8 = 15;
/// Bytes of one body that are no content: extensions of chunks, and trailers.
const EXTRA: usize = 16 * 1024;

/// A body that is not framed as it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Within the content, or before so many bytes of a chunk.
    Content(u64),
    /// Within the size of a chunk: its digits so far.
    Size(u64, u8),
    /// Behind the size: blanks, which only an extension may follow.
    Blank(u64),
    /// Within the extension of a chunk.
    Extension(u64),
    /// Behind the CR of a size line.
    SizeLf(u64),
    /// Behind a chunk's content.
    ChunkCr,
    ChunkLf,
    /// At the start of a line behind the last chunk.
    Trailer,
    TrailerName,
    TrailerValue,
    TrailerLf,
    /// Behind the CR of the blank line that ends everything.
    LastLf,
    End,
    Malformed,
}

/// A body on its way: told every byte, it knows where it ends.
#[derive(Debug)]
pub struct Body {
    at: At,
    chunked: bool,
    extra: usize,
}

impl Body {
    /// A body of which nothing has come.
    pub fn new(framing: Framing) -> Self {
        let at = match framing {
            Framing::Nothing | Framing::Length(0) => At::End,
            Framing::Length(length) => At::Content(length),
            Framing::Chunked => At::Size(0, 0),
        };
        Self { at, chunked: framing == Framing::Chunked, extra: 0 }
    }

    /// Whether all of it has come.
    pub fn is_whole(&self) -> bool {
        self.at == At::End
    }

    /// How many of these bytes, which come next, belong to it.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut taken = 0;
        while taken < bytes.len() && self.at != At::End {
            if let At::Content(left) = self.at {
                let rest = bytes.len() - taken;
                let part = usize::try_from(left).map_or(rest, |left| left.min(rest));
                taken += part;
                self.at = match left - part as u64 {
                    0 if self.chunked => At::ChunkCr,
                    0 => At::End,
                    left => At::Content(left),
                };
                continue;
            }
            self.at = self.next(bytes[taken]);
            taken += 1;
            if self.at == At::Malformed || self.extra > EXTRA {
                self.at = At::Malformed;
                return Err(Malformed);
            }
        }
        Ok(taken)
    }

    /// One byte that is no content.
    fn next(&mut self, byte: u8) -> At {
        match (self.at, byte) {
            (At::Size(size, digits @ ..DIGITS), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                At::Size(size * 16 + u64::from(digit), digits + 1)
            }
            (At::Size(size, 1..), b'\r') | (At::Extension(size), b'\r') => At::SizeLf(size),
            (At::Size(size, 1..) | At::Blank(size), b' ' | b'\t') => self.beside(At::Blank(size)),
            (At::Size(size, 1..) | At::Blank(size), b';') => At::Extension(size),
            (At::Extension(size), _) if is_text(byte) => self.beside(At::Extension(size)),
            (At::SizeLf(0), b'\n') => At::Trailer,
            (At::SizeLf(size), b'\n') => At::Content(size),
            (At::ChunkCr, b'\r') => At::ChunkLf,
            (At::ChunkLf, b'\n') => At::Size(0, 0),
            (At::Trailer, b'\r') => At::LastLf,
            (At::Trailer | At::TrailerName, _) if is_token(byte) => self.beside(At::TrailerName),
            (At::TrailerName, b':') => At::TrailerValue,
            (At::TrailerValue, b'\r') => At::TrailerLf,
            (At::TrailerValue, _) if is_text(byte) => self.beside(At::TrailerValue),
            (At::TrailerLf, b'\n') => At::Trailer,
            (At::LastLf, b'\n') => At::End,
            _ => At::Malformed,
        }
    }

    fn beside(&mut self, at: At) -> At {
        self.extra += 1;
        at
    }
}

/// Whether a byte may stand in the value of a field.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// Whether a byte may stand in a token (RFC 9110 §5.6.2).
pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Whole and byte by byte alike: how long the body is, if it has come to its end.
    fn read(framing: Framing, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        let mut whole = Body::new(framing);
        let at_once = whole.take(bytes).map(|taken| whole.is_whole().then_some(taken));
        let mut slow = Body::new(framing);
        let mut taken = Ok(0);
        for byte in bytes {
            taken = taken.and_then(|before| Ok(before + slow.take(&[*byte])?));
        }
        assert_eq!(at_once, taken.map(|taken| slow.is_whole().then_some(taken)));
        at_once
    }

    #[test]
    fn a_body_ends_where_its_head_says() {
        assert_eq!(read(Framing::Nothing, b"GET"), Ok(Some(0)));
        assert_eq!(read(Framing::Length(0), b"GET"), Ok(Some(0)));
        assert_eq!(read(Framing::Length(2), b"{}GET"), Ok(Some(2)));
        assert_eq!(read(Framing::Length(9), b"{}"), Ok(None));
    }

    #[test]
    fn chunks_end_with_the_blank_line_behind_the_last() {
        for good in [
            "0\r\n\r\n",
            "2\r\n{}\r\n0\r\n\r\n",
            "1\r\n{\r\n1;a=\"b\"\r\n}\r\n0\r\n\r\n",
            "02 ;a\r\n{}\r\n0;last\r\n\r\n",
            "9\r\n0\r\n\r\n0\r\n\r\r\n0\r\n\r\n",
            "0\r\nX-Sum: 1\r\nX-More:\r\n\r\n",
        ] {
            assert_eq!(read(Framing::Chunked, good.as_bytes()), Ok(Some(good.len())), "{good:?}");
            assert_eq!(read(Framing::Chunked, format!("{good}GET").as_bytes()), Ok(Some(good.len())));
            assert_eq!(read(Framing::Chunked, &good.as_bytes()[..good.len() - 1]), Ok(None), "{good:?}");
        }
    }

    #[test]
    fn what_two_servers_might_read_differently_is_malformed() {
        for bad in [
            "\r\n{}\r\n0\r\n\r\n",
            " \r\n",
            ";a\r\n",
            "0x2\r\n{}\r\n0\r\n\r\n",
            "+2\r\n{}\r\n0\r\n\r\n",
            " 2\r\n{}\r\n0\r\n\r\n",
            "2 \r\n{}\r\n0\r\n\r\n",
            "2\n{}\r\n0\r\n\r\n",
            "2\r\n{}\n0\r\n\r\n",
            "2\r\n{}0\r\n\r\n",
            "2;a\nb\r\n{}\r\n0\r\n\r\n",
            "2;a\rb\r\n{}\r\n0\r\n\r\n",
            "2;\0\r\n{}\r\n0\r\n\r\n",
            "2\r\r\n{}\r\n0\r\n\r\n",
            "zz\r\n{}\r\n",
            "0000000000000002\r\n{}\r\n0\r\n\r\n",
            "10000000000000002\r\n{}\r\n0\r\n\r\n",
            "0\r\n\n",
            "0\r\nno colon\r\n\r\n",
            "0\r\n: empty\r\n\r\n",
            "0\r\nX: 1\n\r\n",
            "0\r\nX: 1\r\n folded\r\n\r\n",
            "0\r\nGET / HTTP/1.1\r\n\r\n",
        ] {
            assert_eq!(read(Framing::Chunked, bad.as_bytes()), Err(Malformed), "{bad:?}");
        }
        let long = |size: usize| format!("1;{}\r\n{{\r\n0\r\n\r\n", "a".repeat(size));
        assert!(read(Framing::Chunked, long(EXTRA).as_bytes()).unwrap().is_some());
        assert_eq!(read(Framing::Chunked, long(EXTRA + 1).as_bytes()), Err(Malformed));
    }
}
