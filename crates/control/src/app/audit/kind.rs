//! What records are about.

use crate::audit::chain::BREAK;

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    SandboxCreate,
    SandboxKill,
    SandboxHibernate,
    SandboxWake,
    SandboxReboot,
    SandboxTimeout,
    SandboxTags,
    SandboxScale,
    /// What its node saw it become, by itself or by use.
    SandboxState,
    CheckpointCreate,
    CheckpointRestore,
    CheckpointDelete,
    CheckpointPublish,
    CheckpointPatch,
    /// What its node saw it become.
    CheckpointState,
    /// What is built, whatever it is called.
    Image,
    /// A name of an image.
    Snapshot,
    Policy,
    Exec,
    ExecAttach,
    ExecKill,
    Pty,
    PtyAttach,
    PtyClose,
    FileWrite,
    FileDelete,
    FileMkdir,
    FileMove,
    FileChmod,
    FileUnpack,
    FileRead,
    ToolCall,
    AgentSession,
    SignedUrl,
    Preview,
    PreviewRequest,
    SecretStore,
    Secret,
    SecretUse,
    Network,
    /// Somebody who may not.
    Access,
    ApiKey,
    /// About the records themselves.
    Audit,
    /// Records that are not as they were left.
    AuditBreak,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::SandboxCreate => "sandbox.create",
            Self::SandboxKill => "sandbox.kill",
            Self::SandboxHibernate => "sandbox.hibernate",
            Self::SandboxWake => "sandbox.wake",
            Self::SandboxReboot => "sandbox.reboot",
            Self::SandboxTimeout => "sandbox.timeout",
            Self::SandboxTags => "sandbox.tags",
            Self::SandboxScale => "sandbox.scale",
            Self::SandboxState => "sandbox.state",
            Self::CheckpointCreate => "checkpoint.create",
            Self::CheckpointRestore => "checkpoint.restore",
            Self::CheckpointDelete => "checkpoint.delete",
            Self::CheckpointPublish => "checkpoint.publish",
            Self::CheckpointPatch => "checkpoint.patch",
            Self::CheckpointState => "checkpoint.state",
            Self::Image => "image",
            Self::Snapshot => "snapshot",
            Self::Policy => "policy",
            Self::Exec => "exec",
            Self::ExecAttach => "exec.attach",
            Self::ExecKill => "exec.kill",
            Self::Pty => "pty",
            Self::PtyAttach => "pty.attach",
            Self::PtyClose => "pty.close",
            Self::FileWrite => "file.write",
            Self::FileDelete => "file.delete",
            Self::FileMkdir => "file.mkdir",
            Self::FileMove => "file.move",
            Self::FileChmod => "file.chmod",
            Self::FileUnpack => "file.unpack",
            Self::FileRead => "file.read",
            Self::ToolCall => "tool",
            Self::AgentSession => "agent",
            Self::SignedUrl => "signed_url",
            Self::Preview => "preview",
            Self::PreviewRequest => "preview.request",
            Self::SecretStore => "secret_store",
            Self::Secret => "secret",
            Self::SecretUse => "secret.use",
            Self::Network => "network",
            Self::Access => "access",
            Self::ApiKey => "api_key",
            Self::Audit => "audit",
            Self::AuditBreak => BREAK,
        }
    }
}
