//! What is wrong with a configuration, in the words that nginx has for it.

use std::fmt;
use std::path::PathBuf;

/// What nginx shows of an error at the most, in bytes.
const MOST_WORDS: usize = 1024;

/// One fault of a configuration. Its text is nginx's own, wherever nginx has one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each text says what it is")]
pub enum Problem {
    #[error("unexpected \"{0}\"")]
    Unexpected(char),
    #[error("unexpected end of file, expecting \";\" or \"}}\"")]
    EndInDirective,
    #[error("unexpected end of file, expecting \"}}\"")]
    EndInBlock,
    #[error("unexpected end of file, expecting terminating characters for lua code block")]
    EndInLua,
    #[error("Lua code block missing the closing long bracket \"{0}\", the inlined Lua code may be too long")]
    OpenLongBracket(String),
    #[error("too long parameter \"{0}...\" started")]
    LongWord(String),
    #[error("too long parameter, probably missing terminating \"{0}\" character")]
    OpenQuote(char),
    #[error("unknown directive \"{0}\"")]
    Unknown(String),
    #[error("\"{0}\" directive is not allowed here")]
    NotAllowed(String),
    #[error("directive \"{0}\" is not terminated by \";\"")]
    NoSemicolon(String),
    #[error("directive \"{0}\" has no opening \"{{\"")]
    NoBlock(String),
    #[error("invalid number of arguments in \"{0}\" directive")]
    Count(String),
    #[error("invalid number of the {0} parameters")]
    EntryCount(&'static str),
    #[error("invalid parameters number")]
    PairCount,
    #[error("\"{0}\" directive is duplicate")]
    Duplicate(String),
    #[error("is duplicate")]
    DuplicateLua,
    #[error("\"{0}\" directive invalid number")]
    Number(String),
    #[error("\"{0}\" directive invalid value")]
    Value(String),
    #[error("\"{name}\" directive must be {sizes}")]
    SizeOf { name: String, sizes: String },
    #[error("invalid value \"{0}\"")]
    NoSuchValue(String),
    #[error("invalid value \"{value}\" in \"{name}\" directive, it must be \"on\" or \"off\"")]
    Flag { name: String, value: String },
    #[error("value must be between {0} and {1}")]
    Between(i64, i64),
    #[error("value must be equal to or greater than {0}")]
    AtLeast(i64),
    #[error("invalid variable name \"{0}\"")]
    VariableName(String),
    #[error("invalid percent value \"{0}\"")]
    Percent(String),
    #[error("invalid location modifier \"{0}\"")]
    LocationModifier(String),
    #[error("location \"{0}\" cannot be inside the exact location \"{1}\"")]
    InExactLocation(String, String),
    #[error("location \"{0}\" cannot be inside the named location \"{1}\"")]
    InNamedLocation(String, String),
    #[error("named location \"{0}\" can be on the server level only")]
    NamedInLocation(String),
    #[error("duplicate upstream \"{0}\"")]
    DuplicateUpstream(String),
    #[error("duplicate location \"{0}\"")]
    DuplicateLocation(String),
    #[error("location \"{0}\" is outside location \"{1}\"")]
    OutsideLocation(String, String),
    #[error("no servers are inside upstream")]
    EmptyUpstream,
    #[error("no \"events\" section in configuration")]
    NoEvents,
    #[error("open() \"{path}\" failed ({code}: {text})")]
    Open { path: String, code: i32, text: String },
    #[error("\"{0}\" includes itself")]
    Cycle(String),
    #[error("\"{0}\" is outside of \"{1}\"")]
    Outside(String, String),
    #[error("\"{path}\" is longer than {most} bytes")]
    LongFile { path: String, most: usize },
    #[error("more than {0} files are included")]
    ManyFiles(usize),
    #[error("files include each other more than {0} deep")]
    DeepIncludes(usize),
    #[error("blocks stand in each other more than {0} deep")]
    DeepBlocks(usize),
    #[error("more than {0} directives, with what is included again and again")]
    ManyDirectives(usize),
}

/// A problem and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What is wrong.
    pub problem: Problem,
    /// The file, by the name under which it was opened.
    pub file: PathBuf,
    /// The line that nginx names: the one it has read up to. 0 if it names none.
    pub line: u32,
}

impl fmt::Display for Error {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = self.problem.to_string();
        words.truncate(words.floor_char_boundary(MOST_WORDS));
        to.write_str(&words)?;
        if self.line == 0 { Ok(()) } else { write!(to, " in {}:{}", self.file.display(), self.line) }
    }
}

impl std::error::Error for Error {}
