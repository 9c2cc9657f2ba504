"""The wire protocol as pure code: frames, messages, the hello, server URLs. See SPEC.md."""
