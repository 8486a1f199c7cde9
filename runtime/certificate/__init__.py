"""The certificate: a document with evidence that speculation leaves an artifact's output as it is."""
