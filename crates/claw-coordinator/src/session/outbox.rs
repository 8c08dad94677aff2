//! What must still be said to an agent: at most one of each kind, the newest; of escrows one per instance.

use std::collections::BTreeMap;
use std::time::Duration;

use claw_proto::convert::duration_to_wire;
use claw_proto::convert::session::stamp_to_wire;
use claw_proto::node::v1 as node;
use claw_proto::node::v1::session_response::Message;
use tokio::time::Instant;
use tonic::Status;

use super::Known;
use crate::status::unavailable;
use crate::store::host_state::Desired;

/// Messages that wait for room.
#[derive(Debug)]
pub(super) struct Outbox {
    welcome: Option<node::Welcome>,
    ack: Option<u64>,
    escrow_acks: BTreeMap<String, node::EscrowAck>,
    desired_may_have_changed: bool,
    known: Known,
    question: Option<node::Command>,
    go_away: Option<(&'static str, Duration)>,
    said_good_bye: Option<(&'static str, Duration)>,
    waiting_since: Option<Instant>,
}

impl Outbox {
    /// Begins with the welcome; the desired state follows unless the agent has it.
    pub(super) fn new(welcome: node::Welcome, known: Known) -> Self {
        Self {
            welcome: Some(welcome),
            ack: None,
            escrow_acks: BTreeMap::new(),
            desired_may_have_changed: true,
            known,
            question: None,
            go_away: None,
            said_good_bye: None,
            waiting_since: Some(Instant::now()),
        }
    }

    pub(super) fn desired_may_have_changed(&mut self) {
        self.desired_may_have_changed = true;
        self.touch();
    }

    pub(super) fn acknowledge(&mut self, sequence: u64) {
        self.ack = Some(sequence);
        self.touch();
    }

    pub(super) fn acknowledge_escrow(&mut self, ack: node::EscrowAck) {
        self.escrow_acks.insert(ack.instance.clone(), ack);
        self.touch();
    }

    /// Whether a question waits; the next one must wait elsewhere.
    pub(super) fn has_question(&self) -> bool {
        self.question.is_some()
    }

    pub(super) fn ask(&mut self, question: node::Command) {
        self.question = Some(question);
        self.touch();
    }

    pub(super) fn go_away(&mut self, reason: &'static str, retry: Duration) {
        self.go_away = Some((reason, retry));
        self.touch();
    }

    /// Whether GoAway is on its way.
    pub(super) fn says_good_bye(&self) -> bool {
        self.go_away.is_some() || self.said_good_bye.is_some()
    }

    pub(super) fn has_some(&self) -> bool {
        self.welcome.is_some()
            || self.go_away.is_some()
            || self.desired_may_have_changed
            || self.question.is_some()
            || self.ack.is_some()
            || !self.escrow_acks.is_empty()
    }

    /// What the agent has, by its own words or because it was sent.
    pub(super) fn known(&self) -> Known {
        self.known
    }

    /// Whether the next message is the desired state, which the caller must load.
    pub(super) fn wants_desired(&self) -> bool {
        self.welcome.is_none() && self.go_away.is_none() && self.desired_may_have_changed
    }

    /// The next message other than the desired state.
    pub(super) fn next(&mut self) -> Option<node::SessionResponse> {
        let message = if let Some(welcome) = self.welcome.take() {
            Some(Message::Welcome(welcome))
        } else if let Some((reason, retry)) = self.go_away.take() {
            self.said_good_bye = Some((reason, retry));
            let retry_after = Some(duration_to_wire(retry));
            Some(Message::GoAway(node::GoAway { reason: reason.to_owned(), retry_after }))
        } else if let Some(question) = self.question.take() {
            Some(Message::Command(question))
        } else if let Some(sequence) = self.ack.take() {
            Some(Message::EventAck(node::EventAck { sequence }))
        } else {
            self.escrow_acks.pop_first().map(|(_instance, ack)| Message::EscrowAck(ack))
        };
        self.sent();
        message.map(|message| node::SessionResponse { message: Some(message) })
    }

    /// The desired state, if the agent does not have it; otherwise whatever comes next.
    pub(super) fn next_desired(
        &mut self,
        desired: Option<Desired>,
    ) -> Option<node::SessionResponse> {
        self.desired_may_have_changed = false;
        let Some(desired) = desired else { return self.next() };
        self.known = Some(desired.stamp);
        self.sent();
        let message = Message::DesiredState(node::DesiredState {
            stamp: Some(stamp_to_wire(&desired.stamp)),
            host_state: desired.bytes,
        });
        Some(node::SessionResponse { message: Some(message) })
    }

    /// After GoAway was sent, the status that ends the stream.
    pub(super) fn last_word(&self) -> Option<Status> {
        self.said_good_bye.map(|(reason, retry)| unavailable(reason, retry))
    }

    /// Since when something has waited for room.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.waiting_since
    }

    fn touch(&mut self) {
        self.waiting_since.get_or_insert_with(Instant::now);
    }

    fn sent(&mut self) {
        self.waiting_since = self.has_some().then(Instant::now);
    }
}
