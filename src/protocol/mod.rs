//! What broker and worker say to each other: one enum per direction over `SOCK_SEQPACKET`, fds by `SCM_RIGHTS`.
