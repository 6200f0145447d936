//! The call server against a cage that says anything.
