//! A configuration as a tree of directives that keeps every byte: what is printed is what was read.

use std::borrow::Cow;
use std::ops::Range;
use std::path::PathBuf;

use crate::problem::{Error, Problem};

/// All files of a configuration. The first is the one that includes the others.
#[derive(Debug, Clone)]
pub struct Config {
    /// The files in the order in which nginx opens them, each once.
    pub files: Vec<File>,
}

/// One file.
#[derive(Debug, Clone)]
pub struct File {
    /// The name under which it was opened, which errors show.
    pub path: PathBuf,
    /// Its bytes.
    pub text: Vec<u8>,
    /// What stands at its top.
    pub items: Vec<Item>,
    /// What ended the reading early. Everything before it is in the tree.
    pub broken: Option<Error>,
}

/// A range of bytes in a file.
pub type Span = Range<usize>;

/// A thing that stands in a block or at the top of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A comment between directives.
    Comment(Comment),
    /// A directive, or an entry of a block like `map` or `types`.
    Directive(Directive),
}

/// A comment, from its `#` up to the end of the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comment {
    /// Where it stands; the line feed is not in it.
    pub span: Span,
    /// Its line.
    pub line: u32,
}

/// A name or an argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// Where it stands, with its quotes.
    pub span: Span,
    /// What nginx understands: without quotes, with escapes replaced.
    pub value: Vec<u8>,
    /// The line on which it begins.
    pub line: u32,
    /// The quote around it.
    pub quote: Option<u8>,
}

impl Word {
    /// The value as text. Bytes that are not UTF-8 are shown as `\u{fffd}`.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.value)
    }
}

/// A directive with its arguments, and its block if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// The name, which is always there, and the arguments.
    pub words: Vec<Word>,
    /// Comments between the words.
    pub comments: Vec<Comment>,
    /// The `;` or `{` that ends the words.
    pub end: Span,
    /// The line of `end`, which is the one that nginx names in an error.
    pub end_line: u32,
    /// What stands between `{` and `}`.
    pub block: Option<Block>,
    /// What an `include` opens.
    pub include: Include,
}

impl Directive {
    /// The name as text.
    pub fn name(&self) -> Cow<'_, str> {
        self.words.first().map(Word::text).unwrap_or_default()
    }

    /// The words after the name.
    pub fn args(&self) -> &[Word] {
        self.words.get(1..).unwrap_or_default()
    }

    /// The line on which the name stands.
    pub fn line(&self) -> u32 {
        self.words.first().map_or(self.end_line, |word| word.line)
    }
}

/// What stands between `{` and `}`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Block {
    /// The directives and comments; none in a block of Lua.
    pub items: Vec<Item>,
    /// The code of a `*_by_lua_block`.
    pub lua: Option<Span>,
    /// The `}` with its line; none if the file ends, or is broken, inside of the block.
    pub close: Option<(Span, u32)>,
}

/// The files that an `include` names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Include {
    /// Indices into [`Config::files`].
    pub files: Vec<usize>,
    /// Why the last of them could not be opened.
    pub problem: Option<Box<Problem>>,
}

/// What a piece of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A comment.
    Comment,
    /// A name or an argument.
    Word,
    /// `;`, `{` or `}`.
    Mark,
    /// The code of a block of Lua.
    Lua,
    /// What was not read because of an error before it.
    Rest,
}

impl File {
    /// Every piece of the file in order. Between two pieces there is nothing but white space.
    pub fn pieces(&self) -> Vec<(Kind, Span)> {
        let mut pieces = Vec::new();
        add_items(&self.items, &mut pieces);
        let read = pieces.last().map_or(0, |(_, span)| span.end);
        if self.broken.is_some() {
            pieces.push((Kind::Rest, read..self.text.len()));
        }
        pieces
    }

    /// The file as it was read, put together from its tree.
    pub fn print(&self) -> Vec<u8> {
        let mut printed = Vec::with_capacity(self.text.len());
        for (_, span) in self.pieces() {
            self.copy(printed.len()..span.end, &mut printed);
        }
        self.copy(printed.len()..self.text.len(), &mut printed);
        printed
    }

    fn copy(&self, span: Span, to: &mut Vec<u8>) {
        to.extend_from_slice(self.text.get(span).unwrap_or_default());
    }
}

fn add_items(items: &[Item], to: &mut Vec<(Kind, Span)>) {
    for item in items {
        match item {
            Item::Comment(comment) => to.push((Kind::Comment, comment.span.clone())),
            Item::Directive(directive) => add_directive(directive, to),
        }
    }
}

fn add_directive(directive: &Directive, to: &mut Vec<(Kind, Span)>) {
    let first = to.len();
    to.extend(directive.words.iter().map(|word| (Kind::Word, word.span.clone())));
    to.extend(directive.comments.iter().map(|comment| (Kind::Comment, comment.span.clone())));
    if let Some(own) = to.get_mut(first..) {
        own.sort_by_key(|(_, span)| span.start);
    }
    to.push((Kind::Mark, directive.end.clone()));
    let Some(block) = &directive.block else { return };
    to.extend(block.lua.iter().map(|code| (Kind::Lua, code.clone())));
    add_items(&block.items, to);
    to.extend(block.close.iter().map(|(mark, _)| (Kind::Mark, mark.clone())));
}
