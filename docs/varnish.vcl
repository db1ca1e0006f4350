# Streams behind Varnish; `make compat` runs this file.
vcl 4.1;

backend streams {
    .host = "127.0.0.1";
    .port = "8000";
}

sub vcl_recv {
    # Or a viewer who has gone is noticed only after two or three heartbeats. The parameter
    # pipe_timeout (60 s) has to be longer than the heartbeat (15 s).
    if (req.url ~ "^/(streams|runs|v1)/") {
        return (pipe);
    }
}
