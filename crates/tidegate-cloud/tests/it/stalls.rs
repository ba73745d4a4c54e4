//! Servers that take their time, as hostile or broken ones do: no call waits for them for ever. And what servers say of
//! why they refuse something.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bytes::Bytes;
use tidegate_cloud::{CloudStore, Environment};
use tidegate_contracts::{ObjectName, Store, StoreError};

/// What a server does with each request.
type Conduct = fn(&mut TcpStream, &Receiver<()>);

const HEAD: &str =
    "HTTP/1.1 200 OK\r\nlast-modified: Sun, 06 Nov 1994 08:49:37 GMT\r\netag: \"1\"\r\ncontent-length: 1000\r\n\r\n";

/// Reads the head of a request.
fn heard(stream: &mut TcpStream) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
        head.extend(byte);
    }
}

/// A store on a server of this conduct, which ends when the sender that is given back does.
fn server(conduct: Conduct) -> (CloudStore, std::sync::mpsc::Sender<()>) {
    server_in("region=us-east-1&", conduct)
}

/// The same, with a region in the address or without.
fn server_in(region: &str, conduct: Conduct) -> (CloudStore, std::sync::mpsc::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (ending, ended) = channel();
    std::thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else { return };
        heard(&mut stream);
        conduct(&mut stream, &ended);
    });
    let address = format!("s3://bucket?{region}endpoint=http://127.0.0.1:{port}");
    let environment = [("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "S")];
    let environment: Environment = environment
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    (
        CloudStore::open(address.parse().unwrap(), &environment).unwrap(),
        ending,
    )
}

fn says_nothing(_: &mut TcpStream, ended: &Receiver<()>) {
    let _ = ended.recv();
}

fn stops_in_the_body(stream: &mut TcpStream, ended: &Receiver<()>) {
    let _ = stream.write_all(format!("{HEAD}half").as_bytes());
    let _ = ended.recv();
}

fn sends_a_byte_in_a_second(stream: &mut TcpStream, ended: &Receiver<()>) {
    let _ = stream.write_all(HEAD.as_bytes());
    while ended
        .recv_timeout(Duration::from_secs(1))
        .is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Timeout)
    {
        if stream.write_all(b"x").is_err() {
            return;
        }
    }
}

fn refuses(stream: &mut TcpStream, head: &str, code: &str) {
    let body = format!("<Error><Code>{code}</Code><Message>no</Message></Error>");
    let length = body.len();
    let _ = stream.write_all(format!("HTTP/1.1 {head}\r\ncontent-length: {length}\r\n\r\n{body}").as_bytes());
}

fn of_another_time(stream: &mut TcpStream, _: &Receiver<()>) {
    refuses(
        stream,
        "403 Forbidden\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT",
        "RequestTimeTooSkewed",
    );
}

fn in_another_region(stream: &mut TcpStream, _: &Receiver<()>) {
    refuses(
        stream,
        "301 Moved Permanently\r\nx-amz-bucket-region: eu-west-1",
        "PermanentRedirect",
    );
}

fn after_its_time(stream: &mut TcpStream, _: &Receiver<()>) {
    refuses(stream, "400 Bad Request", "ExpiredToken");
}

fn without_a_reason(stream: &mut TcpStream, _: &Receiver<()>) {
    refuses(
        stream,
        "403 Forbidden\r\nx-amz-bucket-region: us-east-1",
        "AccessDenied",
    );
}

#[tokio::test]
async fn a_refusal_says_what_can_be_done_about_it() {
    let name = ObjectName::new("sealed/00ff").unwrap();
    for (conduct, why) in [
        (
            of_another_time as Conduct,
            "minutes ahead of the server's; set it right",
        ),
        (
            in_another_region,
            "the bucket is in another region; write `region=eu-west-1`",
        ),
        (after_its_time, "the credentials have expired"),
        (without_a_reason, "the credentials do not allow it"),
    ] {
        for gets in [true, false] {
            let (store, _running) = server(conduct);
            let result = if gets {
                store.get(&name, 100).await.map(drop)
            } else {
                store.put_new(&name, Bytes::from_static(b"sealed")).await
            };
            let error = result.unwrap_err();
            assert!(
                matches!(&error, StoreError::Denied { .. }) && error.to_string().contains(why),
                "{error}"
            );
        }
    }
}

#[tokio::test]
async fn a_region_that_the_address_leaves_out_is_no_other_region() {
    let name = ObjectName::new("sealed/00ff").unwrap();
    let (store, _running) = server_in("", without_a_reason);
    let error = store.get(&name, 100).await.unwrap_err().to_string();
    assert!(error.contains("the credentials do not allow it"), "{error}");
}

/// All at once, because each takes as long as a server may take: half a minute, and more where bytes move.
#[tokio::test]
async fn a_server_that_takes_for_ever_is_left() {
    let name = ObjectName::new("sealed/00ff").unwrap();
    let get = |conduct: Conduct| {
        let name = name.clone();
        async move {
            let (store, _running) = server(conduct);
            store.get(&name, 1 << 20).await.map(|_| ())
        }
    };
    let put = async {
        // Nobody takes the body.
        let (store, _running) = server(says_nothing);
        store.put_new(&name, Bytes::from(vec![0; 1 << 20])).await
    };
    let head = async {
        let (store, _running) = server(says_nothing);
        store.head(&name).await.map(|_| ())
    };
    let all = futures::future::join_all([
        Box::pin(get(says_nothing)) as std::pin::Pin<Box<dyn Future<Output = Result<(), StoreError>>>>,
        Box::pin(get(stops_in_the_body)),
        Box::pin(get(sends_a_byte_in_a_second)),
        Box::pin(put),
        Box::pin(head),
    ]);
    let ends = tokio::time::timeout(Duration::from_secs(300), all).await.unwrap();
    for (number, end) in ends.into_iter().enumerate() {
        let error = end.unwrap_err();
        assert!(error.is_transient(), "{number}: {error}");
    }
}
