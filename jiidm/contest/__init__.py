"""The contest's jobs: pictures for a test folder, and the archive to hand in."""
