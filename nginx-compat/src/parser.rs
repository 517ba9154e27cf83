//! From statements to a tree. Open blocks wait on a stack: the depth of a file costs no recursion.

use std::path::PathBuf;

use crate::lexer::{End, Lexer, Statement};
use crate::problem::{Error, Problem};
use crate::tree::{Block, Comment, Directive, File, Include, Item, Span};

/// How deep blocks may stand in each other; nginx has no bound but its stack.
pub(crate) const MOST_DEPTH: usize = 64;

/// Reads one file. An error ends the reading; what stands before it is in the tree.
pub fn parse(path: PathBuf, text: Vec<u8>) -> File {
    let mut lexer = Lexer::new(&text);
    let mut tree = Tree::default();
    let problem = loop {
        match tree.step(&mut lexer) {
            Ok(true) => {}
            Ok(false) => break None,
            Err(problem) => break Some(problem),
        }
    };
    let line = lexer.line;
    let broken = problem.map(|problem| Error { problem, file: path.clone(), line });
    File { items: tree.into_items(), path, text, broken }
}

/// What is read so far: finished items of the innermost block, and the blocks around it.
#[derive(Default)]
struct Tree {
    items: Vec<Item>,
    open: Vec<(Directive, Vec<Item>)>,
}

impl Tree {
    /// Adds one statement. False at the end of the file.
    fn step(&mut self, lexer: &mut Lexer<'_>) -> Result<bool, Problem> {
        let statement = lexer.statement()?;
        match statement.end {
            End::Semicolon => {
                let directive = self.directive(statement);
                self.items.push(Item::Directive(directive));
            }
            End::Open => {
                let directive = self.directive(statement);
                self.open(directive, lexer)?;
            }
            End::Close => {
                self.add_comments(statement.comments);
                if !self.end_block(None, Some((statement.mark, statement.line))) {
                    return Err(Problem::Unexpected('}'));
                }
            }
            End::File => {
                self.add_comments(statement.comments);
                return if self.open.is_empty() { Ok(false) } else { Err(Problem::EndInBlock) };
            }
        }
        Ok(true)
    }

    fn add_comments(&mut self, comments: Vec<Comment>) {
        self.items.extend(comments.into_iter().map(Item::Comment));
    }

    /// A directive of this statement; comments before its name become items of their own.
    fn directive(&mut self, statement: Statement) -> Directive {
        let Statement { words, comments, mark, line, .. } = statement;
        let name = words.first().map_or(mark.start, |word| word.span.start);
        let (before, inside) = comments.into_iter().partition(|comment| comment.span.start < name);
        self.add_comments(before);
        let include = Include::default();
        Directive { words, comments: inside, end: mark, end_line: line, block: None, include }
    }

    fn open(&mut self, directive: Directive, lexer: &mut Lexer<'_>) -> Result<(), Problem> {
        let is_lua = directive.name().ends_with("_by_lua_block");
        self.open.push((directive, std::mem::take(&mut self.items)));
        if self.open.len() > MOST_DEPTH {
            return Err(Problem::DeepBlocks(MOST_DEPTH));
        }
        if is_lua {
            let code = lexer.lua()?;
            let start = lexer.at;
            lexer.next();
            self.end_block(Some(code), Some((start..lexer.at, lexer.line)));
        }
        Ok(())
    }

    /// False if no block is open.
    fn end_block(&mut self, lua: Option<Span>, close: Option<(Span, u32)>) -> bool {
        let Some((mut directive, around)) = self.open.pop() else { return false };
        let items = std::mem::replace(&mut self.items, around);
        directive.block = Some(Block { items, lua, close });
        self.items.push(Item::Directive(directive));
        true
    }

    /// Everything, with the blocks that were never closed.
    fn into_items(mut self) -> Vec<Item> {
        while self.end_block(None, None) {}
        self.items
    }
}
