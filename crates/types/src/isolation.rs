//! What keeps a sandbox apart from its host.

use serde::{Deserialize, Serialize};

/// Written as `container` and `vm` everywhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Namespaces, cgroups and seccomp on the host's kernel.
    #[default]
    Container,
    /// A kernel of its own in a virtual machine.
    Vm,
}

impl Isolation {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Vm => "vm",
        }
    }
}

impl std::fmt::Display for Isolation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Isolation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "container" => Ok(Self::Container),
            "vm" => Ok(Self::Vm),
            other => Err(format!("there is no isolation {other:?}; there are container and vm")),
        }
    }
}
