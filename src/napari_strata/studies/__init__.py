"""Cross-validation and tuning: studies made of several training runs."""
