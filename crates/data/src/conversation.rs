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
    /// What is said.
    pub content: String,
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
            content: content.into(),
            trained: role == Role::Assistant,
            extra: Map::new(),
        }
    }
}

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
}

impl Instruction {
    /// The row as one user turn (instruction, blank line, input) and one assistant turn.
    pub fn to_conversation(&self) -> Conversation {
        let user = if self.input.is_empty() {
            self.instruction.clone()
        } else {
            format!("{}\n\n{}", self.instruction, self.input)
        };
        Conversation::new(vec![
            Message::new(Role::User, user),
            Message::new(Role::Assistant, self.output.clone()),
        ])
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
}
