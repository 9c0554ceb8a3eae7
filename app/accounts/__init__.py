"""People and programs: users, memberships, sessions, invite and sign-in links, API tokens, and who may do what."""
