//! `larder memory`: lists, exports, imports and deletes stored conversations.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use larder_host::larder_core::memory::operator::{
    MemoryOperator, SessionContent, SessionFilter, SessionOverview,
};
use larder_host::{Error, IdentityParts, MemoryOptions, MemorySnapshot, Store, Strategy, Turn, drivers};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::inspect::done;
use crate::output::{complain, heard, output};
use crate::standard;
use crate::store::{StoreArgument, closing};
use crate::text::{escape, time};

/// List, export, import and delete stored conversations
#[derive(Args)]
pub(crate) struct Memory {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the sessions, one per line
    List(List),
    /// Print one session
    Show(Show),
    /// Print sessions as JSON, one per line, as input for `larder memory import`
    Export(Export),
    /// Import sessions from standard input, and create the store if it does not exist
    ///
    /// The input is the output of `larder memory export`.
    Import(Import),
    /// Delete all sessions of a user, or one session
    Forget(Forget),
}

#[derive(Args)]
struct List {
    #[command(flatten)]
    from: Sessions,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Show {
    #[command(flatten)]
    store: StoreArgument,
    /// Tenant of the session
    #[arg(long)]
    tenant: String,
    /// User of the session
    #[arg(long)]
    user: String,
    /// Session to print
    #[arg(long)]
    session: String,
    /// Run of the session; empty for the whole session
    #[arg(long, default_value = "")]
    run: String,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Export {
    #[command(flatten)]
    from: Sessions,
}

#[derive(Args)]
struct Import {
    #[command(flatten)]
    store: StoreArgument,
    /// Replace sessions that exist
    #[arg(long)]
    replace: bool,
}

#[derive(Args)]
struct Forget {
    #[command(flatten)]
    store: StoreArgument,
    /// Tenant of the user
    #[arg(long)]
    tenant: String,
    /// User whose sessions to delete
    #[arg(long)]
    user: String,
    /// Delete only this session, with all its runs [default: every session]
    #[arg(long)]
    session: Option<String>,
}

#[derive(Args)]
struct Sessions {
    #[command(flatten)]
    store: StoreArgument,
    /// Select sessions of this tenant [default: all tenants]
    #[arg(long)]
    tenant: Option<String>,
    /// Select sessions of this user [default: all users]
    #[arg(long, requires = "tenant")]
    user: Option<String>,
    /// Select this session, with all its runs [default: all sessions]
    #[arg(long, requires = "user")]
    session: Option<String>,
}

impl Sessions {
    fn filter(&self) -> SessionFilter {
        match (&self.tenant, &self.user, &self.session) {
            (Some(tenant), Some(user), Some(session)) => SessionFilter::session(tenant, user, session),
            (Some(tenant), Some(user), None) => SessionFilter::user(tenant, user),
            (Some(tenant), None, _) => SessionFilter::tenant(tenant),
            (None, ..) => SessionFilter::all(),
        }
    }
}

impl Memory {
    pub(crate) async fn execute(self) -> Result<ExitCode> {
        let store = match self.command {
            Command::Import(import) => return import.execute().await,
            Command::Forget(Forget { ref store, .. }) => store.open().await?,
            Command::List(List { ref from, .. }) | Command::Export(Export { ref from }) => {
                from.store.look().await?
            }
            Command::Show(Show { ref store, .. }) => store.look().await?,
        };
        let operator = MemoryOperator::new(&store);
        let outcome = closing(store, move || async move {
            match self.command {
                Command::List(list) => done(list.execute(&operator).await),
                Command::Show(show) => show.execute(&operator).await,
                Command::Export(export) => done(export.execute(&operator).await),
                Command::Forget(forget) => forget.execute(&operator).await,
                Command::Import(_) => Ok(ExitCode::SUCCESS),
            }
        });
        outcome.await
    }
}

impl List {
    async fn execute(self, operator: &MemoryOperator) -> Result<()> {
        if !self.json {
            writeln!(
                output(),
                "TENANT\tUSER\tSESSION\tRUN\tSTRATEGY\tHEALTH\tTURNS\tWAITING\tTOKENS\tUPDATED"
            )?;
        }
        for_each(operator, &self.from.filter(), async |session| {
            let mut output = output();
            match self.json {
                true => writeln!(output, "{}", overview_json(&session))?,
                false => writeln!(output, "{}", overview_line(&session))?,
            }
            Ok(())
        })
        .await
    }
}

/// Calls `work` for every session, and reads the sessions page by page.
async fn for_each(
    operator: &MemoryOperator,
    filter: &SessionFilter,
    mut work: impl AsyncFnMut(SessionOverview) -> Result<()>,
) -> Result<()> {
    let mut after = None;
    loop {
        let page = operator.list(filter, after).await?;
        for session in page.sessions {
            work(session).await?;
        }
        after = page.next;
        if after.is_none() {
            return Ok(());
        }
    }
}

fn overview_line(session: &SessionOverview) -> String {
    let IdentityParts { tenant, user, session: of, run } = &session.identity;
    let names = [tenant, user, of, run, &session.strategy].map(|name| escape(name)).join("\t");
    let updated = time(session.updated_at);
    match &session.content {
        Ok(counts) => format!(
            "{names}\t{}\t{}\t{}\t{}\t{updated}",
            counts.health.name(),
            counts.turns,
            counts.waiting,
            counts.tokens
        ),
        Err(reason) => format!("{names}\tcorrupt: {reason}\t\t\t\t{updated}"),
    }
}

fn overview_json(session: &SessionOverview) -> Value {
    let IdentityParts { tenant, user, session: of, run } = &session.identity;
    let mut object = json!({
        "tenant": tenant, "user": user, "session": of, "run": run,
        "strategy": session.strategy, "bytes": session.bytes,
        "created_at": time(session.created_at), "updated_at": time(session.updated_at),
    });
    let content = match &session.content {
        Ok(counts) => json!({
            "health": counts.health.name(), "turns": counts.turns, "waiting": counts.waiting,
            "tokens": counts.tokens,
        }),
        Err(reason) => json!({ "corrupt": reason }),
    };
    if let (Some(object), Value::Object(content)) = (object.as_object_mut(), content) {
        object.extend(content);
    }
    object
}

impl Show {
    async fn execute(self, operator: &MemoryOperator) -> Result<ExitCode> {
        let Self { tenant, user, session, run, json, .. } = self;
        let Some(content) = operator.show(IdentityParts { tenant, user, session, run }).await? else {
            complain("the session does not exist; `larder memory list` prints the sessions");
            return Ok(ExitCode::FAILURE);
        };
        let shown = if json { content_json(&content).to_string() + "\n" } else { content_text(&content) };
        heard(write!(output(), "{shown}").map_err(Into::into))?;
        Ok(match content.overview.content {
            Ok(_) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        })
    }
}

fn content_json(content: &SessionContent) -> Value {
    let mut object = overview_json(&content.overview);
    if let Some(object) = object.as_object_mut() {
        object.insert("summary".to_string(), json!(content.summary));
        object.insert("waiting_turns".to_string(), json!(content.waiting));
        object.insert("recent_turns".to_string(), json!(content.recent));
    }
    object
}

fn content_text(content: &SessionContent) -> String {
    let counts = match &content.overview.content {
        Ok(counts) => counts,
        Err(reason) => return format!("corrupt: {reason}\n"),
    };
    let mut text = format!(
        "strategy {}, {}, {} turns, {} tokens, updated {}\n",
        content.overview.strategy,
        counts.health.name(),
        counts.turns,
        counts.tokens,
        time(content.overview.updated_at)
    );
    if !content.summary.is_empty() {
        text += &format!("\nsummary:\n{}\n", indented(&content.summary));
    }
    for (title, turns) in [("waiting for a summary", &content.waiting), ("recent", &content.recent)] {
        if !turns.is_empty() {
            text += &format!("\n{title}:\n");
            text.extend(turns.iter().map(turn_text));
        }
    }
    text
}

fn turn_text(turn: &Turn) -> String {
    let at = time(turn.timestamp_millis);
    let (user, assistant) = (indented(&turn.user_message), indented(&turn.assistant_response));
    format!("  {at}\n  user:\n{user}\n  assistant:\n{assistant}\n")
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {}", escape(line))).collect::<Vec<_>>().join("\n")
}

/// One session, as `export` prints it and `import` reads it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Exported {
    tenant: String,
    user: String,
    session: String,
    run: String,
    strategy: String,
    record: Value,
}

impl Exported {
    pub(crate) fn new(identity: IdentityParts, snapshot: &MemorySnapshot) -> Result<Self> {
        let IdentityParts { tenant, user, session, run } = identity;
        let record = serde_json::from_slice(&snapshot.bytes)?;
        let strategy = snapshot.strategy.name().to_string();
        Ok(Self { tenant, user, session, run, strategy, record })
    }
}

impl Export {
    async fn execute(self, operator: &MemoryOperator) -> Result<()> {
        for_each(operator, &self.from.filter(), async |session| {
            let identity = session.identity;
            let named = name(&identity);
            // The session may have been deleted since it was listed.
            let Some(snapshot) = operator.export(identity.clone()).await.context(named)? else {
                return Ok(());
            };
            writeln!(output(), "{}", serde_json::to_string(&Exported::new(identity, &snapshot)?)?)?;
            Ok(())
        })
        .await
    }
}

fn name(identity: &IdentityParts) -> String {
    let IdentityParts { tenant, user, session, run } = identity;
    format!("the session {session:?} of the user {user:?} of the tenant {tenant:?}, run {run:?}")
}

impl Import {
    async fn execute(self) -> Result<ExitCode> {
        let mut lines = Lines::open()?;
        let existing = self.store.find().await?;
        // Create the store only after the first session has been checked.
        let (first, store) = match existing {
            Some(store) => (None, store),
            None => match lines.next()? {
                None => (None, self.store.open().await?),
                Some(line) => {
                    rehearse(&line).await.with_context(|| imported_before(lines.number, 0))?;
                    (Some(line), self.store.open_or_create().await?)
                }
            },
        };
        let operator = MemoryOperator::new(&store);
        closing(store, move || self.import_all(operator, first, lines)).await
    }

    async fn import_all(
        self,
        operator: MemoryOperator,
        first: Option<Vec<u8>>,
        mut lines: Lines,
    ) -> Result<ExitCode> {
        let (mut imported, mut next) = (0_u64, first);
        loop {
            let line = match next.take() {
                Some(line) => line,
                None => match lines.next().with_context(|| imported_before(lines.number, imported))? {
                    Some(line) => line,
                    None => break,
                },
            };
            let done = import(&operator, &line, self.replace).await;
            done.with_context(|| imported_before(lines.number, imported))?;
            imported += 1;
        }
        let printed = writeln!(output(), "imported {imported} sessions");
        printed
            .with_context(|| format!("{imported} sessions were imported, but the output was not written"))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn imported_before(number: u64, imported: u64) -> String {
    format!("line {number}, after {imported} sessions were imported")
}

async fn import(operator: &MemoryOperator, line: &[u8], replace: bool) -> Result<()> {
    let line = std::str::from_utf8(line).context("the line is not UTF-8")?;
    let exported: Exported = serde_json::from_str(line)
        .context("the line is not a session as `larder memory export` prints it")?;
    let Exported { tenant, user, session, run, strategy, record } = exported;
    let identity = IdentityParts { tenant, user, session, run };
    let strategy: Strategy = strategy.parse()?;
    let snapshot = MemorySnapshot { strategy, bytes: serde_json::to_vec(&record)? };
    match operator.import(identity.clone(), &snapshot, replace).await {
        Err(Error::Conflict) if !replace => {
            bail!("{} already exists; replace it with --replace", name(&identity))
        }
        imported => imported.with_context(|| name(&identity)),
    }
}

/// Imports a session into an in-memory store, to check it.
async fn rehearse(line: &[u8]) -> Result<()> {
    let store = Store::builder_shared(drivers().open("in-memory:").await?).sweep_interval(None).build()?;
    import(&MemoryOperator::new(&store), line, false).await
}

/// The length of the longest line of an export, in bytes: the largest record of a session, which
/// can be longer in JSON, and the names.
const LINE_BYTES_MAX: u64 = 2 * MemoryOptions::MEMORY_BYTES_MAX + (1 << 20);

/// The non-empty lines of standard input.
struct Lines {
    input: BufReader<File>,
    /// The number of the last line that was read.
    number: u64,
}

impl Lines {
    fn open() -> Result<Self> {
        let input = standard::input().context("cannot read standard input; nothing was imported")?;
        Ok(Self { input: BufReader::new(input), number: 0 })
    }

    fn next(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            self.number += 1;
            let mut line = Vec::new();
            let read = (&mut self.input).take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut line);
            if read.context("cannot read standard input")? == 0 {
                return Ok(None);
            }
            if line.len() as u64 > LINE_BYTES_MAX {
                bail!(
                    "the line is longer than {LINE_BYTES_MAX} bytes, so it is not a line of `larder memory export`"
                );
            }
            let end = line.trim_ascii_end().len();
            if end > 0 {
                line.truncate(end);
                return Ok(Some(line));
            }
        }
    }
}

impl Forget {
    async fn execute(self, operator: &MemoryOperator) -> Result<ExitCode> {
        let filter = match &self.session {
            Some(session) => SessionFilter::session(&self.tenant, &self.user, session),
            None => SessionFilter::user(&self.tenant, &self.user),
        };
        let (mut sessions, mut turns, mut printed) = (0_u64, 0, Ok(()));
        let forgotten = operator
            .forget(&filter, |removed| {
                sessions += 1;
                let counts = removed.content.map_or(0, |counts| counts.turns);
                turns += counts;
                let IdentityParts { session, run, .. } = &removed.identity;
                // A failure to print must not stop the deletion.
                let (session, run) = (escape(session), escape(run));
                if printed.is_ok() {
                    printed = writeln!(output(), "removed session {session} {run}\t{counts} turns in full");
                }
            })
            .await;
        let removed = format!("removed {sessions} sessions with {turns} turns in full, and their summaries");
        let printed = printed.and_then(|()| writeln!(output(), "{removed}"));
        forgotten.with_context(|| removed.clone())?;
        printed.with_context(|| format!("{removed}, but the output was not written"))?;
        Ok(ExitCode::SUCCESS)
    }
}
