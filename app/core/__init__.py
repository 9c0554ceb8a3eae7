"""What every slice stands on: settings, database, state machines, jobs, artifacts. No domain words here."""
