"""What the processes of a test do, once each has joined the others."""
