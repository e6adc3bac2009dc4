"""Training objectives: functions of a network and of drawn samples, noise and times."""
