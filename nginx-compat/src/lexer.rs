//! From bytes to statements, by the rules of nginx 1.22.1. Two of them surprise: a quote means
//! something only at the beginning of a word, and a word (or a comment) of 4,096 bytes is an error.

use crate::problem::Problem;
use crate::tree::{Comment, Span, Word};

/// The size of nginx's buffer, which no word or comment outgrows.
const BUFFER: usize = 4096;

/// How a statement ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Semicolon,
    Open,
    Close,
    File,
}

/// What stands before the next `;`, `{`, `}` or the end of the file.
pub(crate) struct Statement {
    pub(crate) words: Vec<Word>,
    pub(crate) comments: Vec<Comment>,
    pub(crate) end: End,
    pub(crate) mark: Span,
    pub(crate) line: u32,
}

pub(crate) struct Lexer<'a> {
    pub(crate) text: &'a [u8],
    pub(crate) at: usize,
    pub(crate) line: u32,
}

impl<'a> Lexer<'a> {
    pub(crate) fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0, line: 1 }
    }

    pub(crate) fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    pub(crate) fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        self.line += u32::from(byte == b'\n');
        Some(byte)
    }

    /// Reads one statement. After an error, `line` is the line that nginx names.
    pub(crate) fn statement(&mut self) -> Result<Statement, Problem> {
        let (mut words, mut comments) = (Vec::new(), Vec::new());
        loop {
            let end = match self.peek() {
                None if words.is_empty() => End::File,
                None => return Err(Problem::EndInDirective),
                Some(b' ' | b'\t' | b'\r' | b'\n') => {
                    self.next();
                    continue;
                }
                Some(b'#') => {
                    comments.push(self.comment()?);
                    continue;
                }
                Some(mark @ (b';' | b'{')) if words.is_empty() => {
                    return Err(Problem::Unexpected(char::from(mark)));
                }
                Some(b';') => End::Semicolon,
                Some(b'{') => End::Open,
                Some(b'}') if words.is_empty() => End::Close,
                Some(b'}') => return Err(Problem::Unexpected('}')),
                Some(quote @ (b'"' | b'\'')) => {
                    words.push(self.quoted(quote)?);
                    continue;
                }
                Some(_) => {
                    words.push(self.bare()?);
                    continue;
                }
            };
            let start = self.at;
            self.next();
            return Ok(Statement { words, comments, end, mark: start..self.at, line: self.line });
        }
    }

    fn comment(&mut self) -> Result<Comment, Problem> {
        let (start, line) = (self.at, self.line);
        while self.peek().is_some_and(|byte| byte != b'\n') {
            self.next();
            self.fits(start, line, None)?;
        }
        Ok(Comment { span: start..self.at, line })
    }

    fn quoted(&mut self, quote: u8) -> Result<Word, Problem> {
        let (start, line) = (self.at, self.line);
        self.next();
        loop {
            self.fits(start + 1, line, Some(quote))?;
            match self.next() {
                None => return Err(Problem::EndInDirective),
                Some(b'\\') => {
                    self.fits(start + 1, line, Some(quote))?;
                    self.next();
                }
                Some(byte) if byte == quote => break,
                Some(_) => {}
            }
        }
        self.fits(start + 1, line, None)?;
        // A closing parenthesis may follow, for the sake of `if ($a = "b")`.
        match self.peek() {
            None | Some(b' ' | b'\t' | b'\r' | b'\n' | b';' | b'{' | b')') => {}
            Some(other) => return Err(Problem::Unexpected(char::from(other))),
        }
        let inner = self.text.get(start + 1..self.at - 1).unwrap_or_default();
        Ok(Word { span: start..self.at, value: unescaped(inner), line, quote: Some(quote) })
    }

    fn bare(&mut self) -> Result<Word, Problem> {
        let (start, line) = (self.at, self.line);
        let mut variable = false;
        loop {
            self.fits(start, line, None)?;
            match self.peek() {
                None => return Err(Problem::EndInDirective),
                // The brace of `${name}` opens no block.
                Some(b'{') if variable => {}
                Some(b' ' | b'\t' | b'\r' | b'\n' | b';' | b'{') => break,
                Some(b'\\') => {
                    variable = false;
                    self.next();
                    self.fits(start, line, None)?;
                }
                Some(byte) => variable = byte == b'$',
            }
            self.next();
        }
        let value = unescaped(self.text.get(start..self.at).unwrap_or_default());
        Ok(Word { span: start..self.at, value, line, quote: None })
    }

    /// Whether nginx's buffer holds what began at `start`, now that one more byte is wanted.
    fn fits(&mut self, start: usize, line: u32, quote: Option<u8>) -> Result<(), Problem> {
        if self.at - start < BUFFER || self.at >= self.text.len() {
            return Ok(());
        }
        self.line = line;
        if let Some(quote) = quote {
            return Err(Problem::OpenQuote(char::from(quote)));
        }
        let shown = self.text.get(start..start + 10).unwrap_or_default();
        Err(Problem::LongWord(String::from_utf8_lossy(shown).into_owned()))
    }
}

/// A word's value: a backslash goes before a quote or a backslash and makes `\t`, `\r`, `\n`; it stays
/// before anything else.
fn unescaped(raw: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(raw.len());
    let mut rest = raw.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        let replaced = match rest.peek() {
            Some(next) if byte == b'\\' => match next {
                b'"' | b'\'' | b'\\' => Some(*next),
                b't' => Some(b'\t'),
                b'r' => Some(b'\r'),
                b'n' => Some(b'\n'),
                _ => None,
            },
            _ => None,
        };
        if replaced.is_some() {
            rest.next();
        }
        value.push(replaced.unwrap_or(byte));
    }
    value
}
