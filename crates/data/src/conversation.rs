//! What one row of a data file says, whatever its format.

use serde_json::{Map, Value};

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The person.
    User,
    /// The model: the turns that are trained.
    Assistant,
    /// The result of a tool call.
    Tool,
}

impl Role {
    /// The four roles in the order of the documentation.
    pub const ALL: [Role; 4] = [Role::System, Role::User, Role::Assistant, Role::Tool];

    /// The name that templates compare with.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }

    /// The role with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }

    /// The role with this name, or with one of the names that some models and interfaces use.
    pub fn from_alias(name: &str) -> Option<Self> {
        match name {
            "developer" => Some(Role::System),
            "function" | "ipython" => Some(Role::Tool),
            _ => Self::from_name(name),
        }
    }
}

/// One turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; `None` where the row has null or no such key, as beside a tool call.
    pub content: Option<String>,
    /// Whether an assistant turn is trained (`"weight": 0` in a row says no).
    pub trained: bool,
    /// Other keys of the row's message (`name`, `tool_calls`, …), handed to the template.
    pub extra: Map<String, Value>,
}

impl Message {
    /// A turn without extra keys, trained if it is the assistant's.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: Some(content.into()),
            trained: role == Role::Assistant,
            extra: Map::new(),
        }
    }

    /// What is said; nothing where the row says nothing.
    pub fn text(&self) -> &str {
        self.content.as_deref().unwrap_or_default()
    }

    /// The tool calls of the turn.
    pub fn calls(&self) -> &[Value] {
        let calls = self.extra.get("tool_calls").and_then(Value::as_array);
        calls.map_or(&[], Vec::as_slice)
    }

    /// What the model thinks before it answers, under the first of [`REASONING_KEYS`].
    pub fn reasoning(&self) -> Option<&str> {
        let mut texts = REASONING_KEYS.iter().filter_map(|key| self.extra.get(*key));
        texts.find_map(Value::as_str)
    }

    /// The message as a template sees it.
    ///
    /// A key without a value is absent, and reasoning has every name that templates read it by.
    ///
    /// # Source
    /// `_normalize_chat_messages` and `_alias_reasoning_fields` in
    /// `transformers/utils/chat_template_utils.py`; `reasoning` is filled here only.
    pub fn to_json(&self) -> Value {
        let mut json = Map::new();
        json.insert("role".into(), self.role.as_str().into());
        if let Some(content) = &self.content {
            json.insert("content".into(), content.as_str().into());
        }
        for (key, value) in self.extra.iter().filter(|(_, value)| !value.is_null()) {
            json.insert(key.clone(), value.clone());
        }
        if let Some(reasoning) = REASONING_KEYS
            .iter()
            .find_map(|key| json.get(*key))
            .cloned()
        {
            for key in REASONING_KEYS {
                json.entry(key).or_insert_with(|| reasoning.clone());
            }
        }
        Value::Object(json)
    }
}

/// The names under which rows and templates have a turn's reasoning; the first is the usual one.
pub const REASONING_KEYS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A list of turns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// The turns in order.
    pub messages: Vec<Message>,
    /// Tool descriptions of the row, handed to the template.
    pub tools: Option<Value>,
}

impl Conversation {
    /// A conversation without tools.
    pub fn new(messages: Vec<Message>) -> Self {
        Self {
            messages,
            tools: None,
        }
    }
}

/// An Alpaca row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instruction {
    /// The task.
    pub instruction: String,
    /// Material for the task; may be empty.
    pub input: String,
    /// The answer.
    pub output: String,
    /// Instructions for the whole conversation; may be empty.
    pub system: String,
    /// Questions and answers before this one.
    pub history: Vec<(String, String)>,
}

impl Instruction {
    /// A field beside the turn that the row has, `system` or `history`.
    pub fn beside_turn(&self) -> Option<&'static str> {
        match (self.system.trim().is_empty(), self.history.is_empty()) {
            (false, _) => Some("system"),
            (true, false) => Some("history"),
            (true, true) => None,
        }
    }

    /// The row as turns: system prompt, history, one user turn (instruction, blank line, input) and
    /// the answer.
    pub fn to_conversation(&self) -> Conversation {
        let user = match (self.instruction.is_empty(), self.input.is_empty()) {
            (_, true) => self.instruction.clone(),
            (true, false) => self.input.clone(),
            (false, false) => format!("{}\n\n{}", self.instruction, self.input),
        };
        let system = (!self.system.is_empty()).then_some((Role::System, self.system.as_str()));
        let history = self.history.iter();
        let history = history
            .flat_map(|(question, answer)| [(Role::User, &**question), (Role::Assistant, answer)]);
        let turn = [(Role::User, &*user), (Role::Assistant, &self.output)];
        let turns = system.into_iter().chain(history).chain(turn);
        Conversation::new(turns.map(|(role, text)| Message::new(role, text)).collect())
    }
}

/// A `prompt_completion` row of texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// What stands before.
    pub prompt: String,
    /// What the model is to write.
    pub completion: String,
}

/// Two answers to one prompt; each is a [`Record::Chat`] or a [`Record::Completion`].
#[derive(Clone, Debug, PartialEq)]
pub struct Preference {
    /// The prompt with the better answer.
    pub chosen: Record,
    /// The prompt with the worse one.
    pub rejected: Record,
    /// How much higher the better one should be rated, where the row says so; finite.
    pub margin: Option<f32>,
}

/// One answer that somebody judged; it is a [`Record::Chat`] or a [`Record::Completion`].
#[derive(Clone, Debug, PartialEq)]
pub struct Unpaired {
    /// The prompt with its answer.
    pub answer: Record,
    /// Whether it is a good one.
    pub desirable: bool,
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A `messages` or `sharegpt` row.
    Conversation(Conversation),
    /// A `prompt_completion` row of messages.
    Chat {
        /// Prompt and completion; only turns of the completion are trained.
        chat: Conversation,
        /// How many messages are the prompt.
        prompt_messages: usize,
    },
    /// A `prompt_completion` row of texts.
    Completion(Completion),
    /// An `alpaca` row.
    Instruction(Instruction),
    /// A `text` row.
    Text(String),
    /// A `preference` row.
    Preference(Box<Preference>),
    /// An `unpaired` row.
    Unpaired(Box<Unpaired>),
}

impl Record {
    /// The conversations of the row, where it has any.
    pub fn chats(&self) -> Vec<&Conversation> {
        match self {
            Self::Conversation(chat) | Self::Chat { chat, .. } => vec![chat],
            Self::Preference(pair) => [&pair.chosen, &pair.rejected]
                .into_iter()
                .flat_map(Self::chats)
                .collect(),
            Self::Unpaired(row) => row.answer.chats(),
            Self::Completion(_) | Self::Instruction(_) | Self::Text(_) => Vec::new(),
        }
    }
}
