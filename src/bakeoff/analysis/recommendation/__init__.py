"""The recommendation and the sentences that support it."""
