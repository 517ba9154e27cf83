//! Blocks of Lua: everything up to the brace that closes the block, with Lua's strings and comments
//! passed over.

use crate::lexer::Lexer;
use crate::problem::Problem;
use crate::tree::Span;

impl Lexer<'_> {
    /// Reads the code after the `{` of a `*_by_lua_block`, and its `}`.
    pub(crate) fn lua(&mut self) -> Result<Span, Problem> {
        let start = self.at;
        let (mut open, mut none) = (0_usize, (0, 0));
        while let Some(byte) = self.peek() {
            match byte {
                b'}' if open == 0 => return Ok(start..self.at),
                b'}' => open -= 1,
                b'{' => open += 1,
                b'"' | b'\'' => {
                    self.lua_string(byte, if byte == b'"' { &mut none.0 } else { &mut none.1 });
                    continue;
                }
                b'-' if self.follows(b"--") => {
                    self.lua_comment()?;
                    continue;
                }
                b'[' if self.long_bracket(b'[').is_some() => {
                    self.long_string()?;
                    continue;
                }
                _ => {}
            }
            self.next();
        }
        Err(Problem::EndInLua)
    }

    fn follows(&self, text: &[u8]) -> bool {
        self.text.get(self.at..).is_some_and(|rest| rest.starts_with(text))
    }

    /// The level of the long bracket that begins here: `[[` has 0, `[=[` has 1.
    fn long_bracket(&self, bracket: u8) -> Option<usize> {
        let rest = self.text.get(self.at..)?.strip_prefix(&[bracket])?;
        let level = rest.iter().take_while(|byte| **byte == b'=').count();
        (rest.get(level) == Some(&bracket)).then_some(level)
    }

    fn skip(&mut self, count: usize) {
        for _ in 0..count {
            self.next();
        }
    }

    /// A string ends on its line; a quote that begins none stands for itself, as it does to nginx.
    ///
    /// `none` remembers up to where no string can end: from a quote that was escaped on the way there, the
    /// way is the same, and no line is searched twice.
    fn lua_string(&mut self, quote: u8, none: &mut usize) {
        self.next();
        if self.at <= *none {
            return;
        }
        let mut escaped = false;
        for (index, byte) in self.text.get(self.at..).unwrap_or_default().iter().enumerate() {
            match *byte {
                b'\n' => {
                    *none = self.at + index;
                    return;
                }
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                byte if byte == quote => return self.skip(index + 1),
                _ => {}
            }
        }
        *none = self.text.len();
    }

    fn lua_comment(&mut self) -> Result<(), Problem> {
        self.skip(2);
        if self.long_bracket(b'[').is_some() {
            return self.long_string();
        }
        while self.peek().is_some_and(|byte| byte != b'\n') {
            self.next();
        }
        Ok(())
    }

    fn long_string(&mut self) -> Result<(), Problem> {
        let (level, line) = (self.long_bracket(b'[').unwrap_or_default(), self.line);
        self.skip(level + 2);
        while self.peek().is_some() {
            if self.long_bracket(b']') == Some(level) {
                self.skip(level + 2);
                return Ok(());
            }
            self.next();
        }
        self.line = line;
        Err(Problem::OpenLongBracket(format!("]{}]", "=".repeat(level.min(64)))))
    }
}
