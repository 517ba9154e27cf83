//! A configuration with all that it includes. Each file is read once, however often it is included; the
//! check walks it once for each `include`, as nginx does.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::parser::parse;
use crate::problem::{Error, Problem};
use crate::tree::{Config, Directive, File, Include, Item};

/// A file's size at the most.
const MOST_BYTES: usize = 16 << 20;
/// Files of one configuration at the most.
const MOST_FILES: usize = 4096;
/// How deep files may include each other; nginx has no bound but its open files.
const MOST_INCLUDES: usize = 32;

/// How a configuration is read.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// No file outside of this folder is opened, whatever links lead there.
    pub within: Option<PathBuf>,
}

/// Reads a configuration. Relative names of included files begin in the folder of `path`.
///
/// What is wrong inside of a file stands in its tree, where [`check`](crate::check) finds it in nginx's
/// order; an error here means that `path` itself cannot be read.
pub fn load(path: &Path, options: &Options) -> Result<Config, Error> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut loader = Loader { options, folder, files: Vec::new(), known: HashMap::new(), open: Vec::new() };
    loader.file(path).map_err(|problem| Error { problem, file: path.to_owned(), line: 0 })?;
    Ok(Config { files: loader.files })
}

struct Loader<'a> {
    options: &'a Options,
    folder: PathBuf,
    files: Vec<File>,
    known: HashMap<PathBuf, usize>,
    /// The files whose includes are being followed.
    open: Vec<PathBuf>,
}

impl Loader<'_> {
    fn file(&mut self, path: &Path) -> Result<usize, Problem> {
        if self.open.iter().any(|open| open == path) {
            return Err(Problem::Cycle(path.display().to_string()));
        }
        if let Some(known) = self.known.get(path) {
            return Ok(*known);
        }
        if self.open.len() > MOST_INCLUDES {
            return Err(Problem::DeepIncludes(MOST_INCLUDES));
        }
        if self.files.len() >= MOST_FILES {
            return Err(Problem::ManyFiles(MOST_FILES));
        }
        let file = parse(path.to_owned(), self.read(path)?);
        let index = self.files.len();
        self.files.push(file);
        self.known.insert(path.to_owned(), index);
        self.open.push(path.to_owned());
        let mut items =
            self.files.get_mut(index).map(|file| std::mem::take(&mut file.items)).unwrap_or_default();
        self.follow(&mut items);
        if let Some(file) = self.files.get_mut(index) {
            file.items = items;
        }
        self.open.pop();
        Ok(index)
    }

    /// Opens what these directives include. Their depth is bounded by the parser.
    fn follow(&mut self, items: &mut [Item]) {
        for item in items {
            let Item::Directive(directive) = item else { continue };
            if let Some(block) = &mut directive.block {
                self.follow(&mut block.items);
            } else if directive.name() == "include" && directive.args().len() == 1 {
                directive.include = self.include(directive);
            }
        }
    }

    fn include(&mut self, directive: &Directive) -> Include {
        let mut include = Include::default();
        for path in self.paths(&directive.args().first().map(|word| word.text()).unwrap_or_default()) {
            match self.file(&path) {
                Ok(index) => include.files.push(index),
                Err(problem) => {
                    include.problem = Some(Box::new(problem));
                    break;
                }
            }
        }
        include
    }

    /// The files that a name or pattern means. A pattern may mean none, a name is always one.
    fn paths(&self, name: &str) -> Vec<PathBuf> {
        let full = self.folder.join(name);
        let text = full.to_string_lossy();
        if !text.contains(['*', '?', '[']) {
            return vec![full];
        }
        // Two stars mean no more than one to nginx.
        let mut pattern = text.into_owned();
        while pattern.contains("**") {
            pattern = pattern.replace("**", "*");
        }
        let options = glob::MatchOptions {
            case_sensitive: true,
            require_literal_separator: true,
            require_literal_leading_dot: true,
        };
        let found = glob::glob_with(&pattern, options).map(|found| found.flatten().take(MOST_FILES + 1));
        let mut paths: Vec<PathBuf> = found.into_iter().flatten().collect();
        paths.sort();
        paths
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, Problem> {
        let shown = path.display().to_string();
        let failed = |error: &std::io::Error| {
            let text = error.to_string();
            let text = text.split(" (os error").next().unwrap_or_default().to_owned();
            Problem::Open { path: shown.clone(), code: error.raw_os_error().unwrap_or_default(), text }
        };
        if let Some(root) = &self.options.within {
            let real = path.canonicalize().map_err(|error| failed(&error))?;
            let root = root.canonicalize().map_err(|error| failed(&error))?;
            if !real.starts_with(&root) {
                return Err(Problem::Outside(shown, root.display().to_string()));
            }
        }
        let about = std::fs::metadata(path).map_err(|error| failed(&error))?;
        // A device or a pipe has no size, so nginx reads nothing of it.
        if !about.is_file() && !about.is_dir() {
            return Ok(Vec::new());
        }
        let file = std::fs::File::open(path).map_err(|error| failed(&error))?;
        let mut text = Vec::new();
        let most = u64::try_from(MOST_BYTES).unwrap_or(u64::MAX);
        file.take(most + 1).read_to_end(&mut text).map_err(|error| failed(&error))?;
        if text.len() > MOST_BYTES {
            return Err(Problem::LongFile { path: shown, most: MOST_BYTES });
        }
        Ok(text)
    }
}
