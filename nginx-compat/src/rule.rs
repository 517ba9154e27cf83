//! What is known of one directive: where it may stand, what it takes, what it does when it is not there, and
//! what becomes of it here.

/// A directive of a module. Two modules may have one of the same name, each with a rule of its own.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The directive's name.
    pub name: &'static str,
    /// The module that reads it.
    pub module: Module,
    /// Where it may stand.
    pub contexts: Contexts,
    /// How many arguments it takes.
    pub count: Count,
    /// What they are.
    pub value: Value,
    /// Whether it may stand twice in one block.
    pub repeat: Repeat,
    /// What holds without it, in nginx's own words.
    pub default: Option<&'static str>,
    /// What a block inside of the one it stands in has of it.
    pub inherits: Inherits,
    /// What becomes of it.
    pub verdict: Verdict,
    /// Whether that is so today. What is not built has no effect yet.
    pub built: bool,
    /// Why it is not exact; empty if it is.
    pub reason: &'static str,
}

/// A module of nginx.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Module {
    /// Its name in nginx.
    pub name: &'static str,
    /// `nginx` if it is built in, else the file that `load_module` names.
    pub file: &'static str,
}

/// A kind of block, as far as it decides which directives may stand in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named after its block")]
pub enum Context {
    Main,
    Events,
    Http,
    Server,
    Location,
    Upstream,
    /// `if` in a server.
    ServerIf,
    /// `if` in a location.
    LocationIf,
    LimitExcept,
    Mail,
    MailServer,
    Stream,
    StreamServer,
    StreamUpstream,
    Rtmp,
    RtmpServer,
    Application,
    Recorder,
}

impl Context {
    /// All of them, with the family of modules and the word that the table and the documentation have.
    pub const ALL: [(Context, &'static str, &'static str); 18] = [
        (Context::Main, "main", "main"),
        (Context::Events, "event", "events"),
        (Context::Http, "http", "http"),
        (Context::Server, "http", "server"),
        (Context::Location, "http", "location"),
        (Context::Upstream, "http", "upstream"),
        (Context::ServerIf, "http", "server-if"),
        (Context::LocationIf, "http", "location-if"),
        (Context::LimitExcept, "http", "limit_except"),
        (Context::Mail, "mail", "mail"),
        (Context::MailServer, "mail", "server"),
        (Context::Stream, "stream", "stream"),
        (Context::StreamServer, "stream", "server"),
        (Context::StreamUpstream, "stream", "upstream"),
        (Context::Rtmp, "rtmp", "rtmp"),
        (Context::RtmpServer, "rtmp", "server"),
        (Context::Application, "rtmp", "application"),
        (Context::Recorder, "rtmp", "recorder"),
    ];

    /// The context of a block that opens in this one.
    pub fn inside(self, block: &str) -> Option<Context> {
        let word = match (self, block) {
            (Context::Server, "if") => "server-if",
            (Context::Location, "if") => "location-if",
            _ => block,
        };
        let family = self.family();
        let found = |family: &str| Self::ALL.iter().find(|(_, home, name)| *home == family && *name == word);
        let own = found(family);
        // Out of the main context every block leads into a family of its own.
        let other = || {
            Self::ALL.iter().find(|(_, home, name)| self == Context::Main && *home != "main" && *name == word)
        };
        own.or_else(other).map(|(context, ..)| *context)
    }

    fn family(self) -> &'static str {
        Self::ALL.iter().find(|(context, ..)| *context == self).map_or("", |(_, family, _)| family)
    }

    /// The word for it in the table.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(context, ..)| *context == self).map_or("", |(.., name)| name)
    }
}

/// A set of contexts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Contexts(u32);

impl Contexts {
    /// Every context.
    pub const ANY: Contexts = Contexts(u32::MAX);

    /// This set and one more.
    #[must_use]
    pub fn with(self, context: Context) -> Self {
        Self(self.0 | (1 << context as u32))
    }

    /// Whether it has this one.
    pub fn has(self, context: Context) -> bool {
        self.0 & (1 << context as u32) != 0
    }

    /// Those of the set, in the order of [`Context::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Context> {
        Context::ALL.into_iter().map(|(context, ..)| context).filter(move |context| self.has(*context))
    }
}

/// How many arguments a directive takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// Any of these numbers, one bit for each.
    Of(u8),
    /// So many or more.
    AtLeast(usize),
}

impl Count {
    /// Whether it takes so many.
    pub fn takes(self, count: usize) -> bool {
        match self {
            Count::Of(bits) => count < 8 && (bits >> count) & 1 == 1,
            Count::AtLeast(least) => count >= least,
        }
    }
}

/// What a directive's arguments are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// The module reads them in a way of its own.
    Own,
    /// `on` or `off`.
    Flag,
    /// A number within bounds.
    Number(i64, Option<i64>),
    /// A size.
    Size,
    /// One of these sizes.
    SizeOf(Vec<&'static str>),
    /// A size that may be large.
    Offset,
    /// A time in milliseconds.
    Milliseconds,
    /// A time in whole seconds.
    Seconds,
    /// A number of buffers, and their size.
    Buffers,
    /// One word of these.
    OneOf(Vec<&'static str>),
    /// Some words of these.
    SomeOf(Vec<&'static str>),
    /// Rights to a file.
    Access,
    /// A folder, with up to three levels of folders.
    Path,
    /// Anything, variables or not.
    Text,
    /// A size, or variables that make one.
    TextOfSize,
    /// The directives of this block.
    Block(&'static str),
    /// Entries that are no directives.
    Entries,
    /// Code in Lua.
    Lua,
}

/// What happens when a directive stands twice in one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// It is an error.
    Once,
    /// Both count.
    Adds,
    /// Both count, unless one of them is `off`: that is an error.
    UnlessOff,
    /// Both count, unless they name one zone: that is an error.
    ByZone,
}

/// What a block has of a directive that stands in the block around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inherits {
    /// There is one level alone, so nothing.
    Nothing,
    /// The value, unless it has one of its own.
    Value,
    /// The whole list, unless it has an entry of its own.
    List,
    /// The list, before what it adds to it.
    Adds,
    /// Nothing: it holds where it stands.
    Own,
}

/// What becomes of a directive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It does what it does in nginx.
    Exact,
    /// It has its effect, with a difference.
    Changed,
    /// It has no effect, and nobody misses it.
    Ignored,
    /// It has no effect, and the configuration means something else without it.
    Lost {
        /// It is planned for a later version.
        later: bool,
    },
}

impl Verdict {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Exact => "exact",
            Verdict::Changed => "changed",
            Verdict::Ignored => "ignored",
            Verdict::Lost { later: false } => "lost",
            Verdict::Lost { later: true } => "lost (later)",
        }
    }
}
