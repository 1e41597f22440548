"""What people look at: answers as text and JSON, a chat, pages that replay, a notebook's cells."""
