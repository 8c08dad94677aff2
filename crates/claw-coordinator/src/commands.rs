//! Questions to agents: each goes down one session and is answered there, or not at all.
//!
//! A question is kept until it is answered, until whoever asked has gone, or until the session ends,
//! whichever comes first. There are few at once per session, and nothing is asked twice: what must happen
//! even if an agent is away is state, not a question.
//!
//! Start at [`crate::registry::Registry::ask`]; the session sends what [`Line`] holds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use claw_core::name::HostName;
use claw_core::time::Timestamp;
use claw_proto::convert::timestamp_to_wire;
use claw_proto::node::v1 as node;
use tokio::sync::{mpsc, oneshot};

use crate::refusal::{Precondition, Refusal};
use crate::store::random_id;

/// Most questions that one agent has to answer at once.
pub(crate) const MAX_PENDING: usize = 8;
/// Most characters of an agent's error that are passed on.
const MAX_ERROR: usize = 500;

type Pending = Arc<Mutex<BTreeMap<String, oneshot::Sender<node::CommandResult>>>>;

/// The end of a session's line at which questions are asked.
#[derive(Debug)]
pub(crate) struct Line {
    /// Boxed: a channel of tokio allocates room for 32 messages, for every session.
    down: mpsc::Sender<Box<node::Command>>,
    pending: Pending,
}

/// A question that was asked. Dropping it takes the question back.
#[derive(Debug)]
pub struct Asked {
    host: HostName,
    id: String,
    pending: Pending,
    answer: oneshot::Receiver<node::CommandResult>,
}

impl Line {
    /// A line, and where the session gets what it must send.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Box<node::Command>>) {
        let (down, questions) = mpsc::channel(MAX_PENDING);
        (Self { down, pending: Pending::default() }, questions)
    }

    /// Asks.
    pub(crate) fn ask(
        &self,
        host: &HostName,
        question: node::command::Command,
        deadline: Timestamp,
    ) -> Result<Asked, Refusal> {
        let too_many = || Refusal::Exhausted {
            description: format!("hosts/{host} has {MAX_PENDING} questions to answer already"),
            retry: Duration::from_secs(1),
        };
        let mut pending = lock(&self.pending);
        if pending.len() >= MAX_PENDING {
            return Err(too_many());
        }
        let id = random_id();
        let command = node::Command {
            id: id.clone(),
            deadline: Some(timestamp_to_wire(deadline)),
            command: Some(question),
        };
        // Questions that were taken back may still fill it.
        self.down.try_send(Box::new(command)).map_err(|_full_or_closed| too_many())?;
        let (sender, answer) = oneshot::channel();
        pending.insert(id.clone(), sender);
        drop(pending);
        Ok(Asked { host: host.clone(), id, pending: Arc::clone(&self.pending), answer })
    }

    /// Whether somebody still waits for the answer.
    pub(crate) fn awaits(&self, id: &str) -> bool {
        lock(&self.pending).contains_key(id)
    }

    /// Takes an answer; one that nobody waits for is dropped.
    pub(crate) fn answered(&self, result: node::CommandResult) {
        let asker = lock(&self.pending).remove(&result.id);
        if let Some(asker) = asker {
            // Whoever asked may have gone in this moment.
            let _taken = asker.send(result);
        }
    }
}

impl Drop for Line {
    /// Whoever waits hears that nobody will answer.
    fn drop(&mut self) {
        lock(&self.pending).clear();
    }
}

impl Asked {
    /// Waits for the answer.
    ///
    /// # Errors
    /// [`Refusal::TooLate`] after `patience`, [`Refusal::Unavailable`] when the session ended,
    /// [`Refusal::Precondition`] when the agent says that it failed.
    pub async fn answer(mut self, patience: Duration) -> Result<node::CommandResult, Refusal> {
        let host = &self.host;
        let result = match tokio::time::timeout(patience, &mut self.answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_closed)) => {
                return Err(Refusal::Unavailable {
                    description: format!("the session of hosts/{host} ended before it answered"),
                    retry: Duration::from_secs(1),
                });
            }
            Err(_elapsed) => {
                let seconds = patience.as_secs();
                let description = format!("hosts/{host} did not answer within {seconds} s");
                return Err(Refusal::TooLate { description });
            }
        };
        if result.error.is_empty() {
            return Ok(result);
        }
        let said: String = result.error.chars().take(MAX_ERROR).collect();
        let description = format!("hosts/{host} answered: {said}");
        let subject = format!("hosts/{host}");
        Err(Refusal::precondition(Precondition::CommandFailed, subject, description))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        lock(&self.pending).remove(&self.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question() -> node::command::Command {
        node::command::Command::FetchFirewall(node::FetchFirewall {})
    }

    fn ask(line: &Line) -> Result<Asked, Refusal> {
        line.ask(&HostName::parse("a").unwrap(), question(), Timestamp::default())
    }

    fn result(id: &str, error: &str) -> node::CommandResult {
        node::CommandResult { id: id.to_owned(), error: error.to_owned(), payload: None }
    }

    const PATIENCE: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn an_answer_reaches_whoever_asked() {
        let (line, mut questions) = Line::new();
        let (first, second) = (ask(&line).unwrap(), ask(&line).unwrap());
        let ids = [questions.recv().await.unwrap().id, questions.recv().await.unwrap().id];
        line.answered(result("nobody's", ""));
        line.answered(result(&ids[1], "no"));
        line.answered(result(&ids[0], ""));
        assert_eq!(first.answer(PATIENCE).await.unwrap().id, ids[0]);
        let error = second.answer(PATIENCE).await.unwrap_err();
        assert_eq!(error.to_string(), "hosts/a answered: no");
    }

    #[tokio::test]
    async fn questions_are_few_and_can_be_taken_back() {
        let (line, mut questions) = Line::new();
        let all: Vec<Asked> = (0..MAX_PENDING).map(|_| ask(&line).unwrap()).collect();
        assert!(matches!(ask(&line), Err(Refusal::Exhausted { .. })));
        drop(all);
        let old = questions.recv().await.unwrap();
        assert!(!line.awaits(&old.id), "the session need not send it");
        let asked = ask(&line).unwrap();
        assert!(line.awaits(&asked.id));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_an_end_are_told_apart() {
        let (line, _questions) = Line::new();
        let late = ask(&line).unwrap().answer(PATIENCE).await;
        assert!(matches!(late, Err(Refusal::TooLate { .. })), "{late:?}");
        let asked = ask(&line).unwrap();
        drop(line);
        let ended = asked.answer(PATIENCE).await;
        assert!(matches!(ended, Err(Refusal::Unavailable { .. })), "{ended:?}");
    }
}
