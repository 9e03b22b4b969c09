// Package registry is the source of images that are in a registry, by the distribution specification
// (https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md): one image, the tags of a repository, or the
// repositories of a whole registry. It writes nothing but tags: manifests that are there, under other names.
//
// Configuration is that of podman and skopeo: registries.conf (mirrors, locations, blocked, insecure), auth.json and
// Docker's config.json with their helpers, certs.d, and the environment's proxies.
//
// # What is listed
//
// A listing asks for the tags, asks what each of them means (HEAD), and reads the manifests that are not in the cache:
// an image's id is its config's digest, which only the manifest says. Configs are read when somebody asks for them, and
// layers when somebody reads them. Names are full references, host/repository:tag.
//
// A repository has at most 1,000 tags in the listing. A registry has at most 1,000 repositories with 100 tags each, and
// 5,000 references in all; what is left out is said in the log. Anything else can be asked for with Resolve, and is
// listed from then on. That goes for a registry that does not tell its repositories as well, as most public ones do not:
// its listing is empty, with a problem that says so.
//
// Of an index the image for the source's platform is listed too, as a child without a name. Where the source is a single
// reference so are those of all other platforms (up to 32, without attestations): there it costs few requests, once.
// The others are listed when Ask or Resolve was asked for them by digest; and all of all indexes, up to 1,000 of one and
// 20,000 in all, from when AskAll was called. What the registry does not have is not asked for again for ten minutes by
// a listing, and for ten seconds by Ask.
//
// A tag that cannot be asked about keeps its last meaning. A listing that gets no answer three times gives up, and the
// last one stands.
//
// # Tags
//
// A tag is the manifest's own bytes, stored once more under another name in the registry itself and not in its mirrors, so
// that the digest stays. For another repository the registry is asked to mount the blobs; bytes of a layer are never sent.
// A tag is removed by its name, if it still means the image, and never by the digest, which would take the others along.
// What was changed is in the listing at once.
//
// # What must hold
//
//   - No byte of a manifest, a config or a layer is returned that was not verified against its digest, and none of a
//     layer before all of it was, or else against the digest of its chunk in a table of contents whose own digest is in the
//     manifest. Files.Root is not verified, where the layer is not in the cache: it asks for the
//     beginning of it. And who asks for it (imgsrc.WithEarly), and reads a layer from its beginning on, gets that as it comes in,
//     or while a file of the cache is hashed, but never the end, and hears what came of it.
//   - Every answer is bounded, in bytes (manifests and configs 4 MiB, a blob what its descriptor says) and in time: ten
//     seconds for a document, with all attempts, and for a config without a byte; five minutes for a listing; thirty seconds without a byte
//     for a blob; a mirror has half of that. A failure is the answer for a moment (see inTime), in which other requests are made
//     but once (see trouble). Requests are repeated a few times when a connection breaks or the registry says 429 or 5xx, and
//     not before the time that it asks for (ten minutes at most); when that is far, they fail.
//   - A blob is fetched once, on the source's own context, whoever wants it and however many processes do; a reader who
//     leaves does not stop it. A connection that breaks is replaced by another that goes on where it stopped, and what
//     has come of a blob whose fetch failed is not fetched again. Where the disk of the cache is
//     full, what was not used for long goes; a blob that there is no room for even so comes into a temporary file from the beginning on. Six come in at a time: one that nobody waits for any more, or of which
//     nothing comes, stops for one that somebody waits for, and goes on later (see turns); meanwhile another process may go on with
//     it, or finish it: whoever is in the middle of it reads on.
//     One that is wrong is not fetched again for a moment (see spoilt).
//   - Credentials go to the registry and to the token server that it names, and to no server that either redirects to;
//     over an open line only where registries.conf, --tls-verify=false or the loopback interface allow that, and never to a
//     token server elsewhere because of where the registry lies. They appear in no error and no log, even if a server
//     repeats them.
//   - While nobody looks at the stamp, the registry is left alone; otherwise it is asked at most once a minute.
//
// # Layers with a table of contents
//
// Of eStargz and zstd:chunked layers (see lazy) Files asks for the table, and for the chunks of what is read, by ranges of
// the blob: a little more than is wanted, and the more the longer a reader goes on at one place, up to 4 MiB, then also ahead
// of him (see ranges). Who has read a third of a blob, or an eighth from its beginning on, or here and there with so many
// requests that the whole would not have cost more, gets all that is missing. So does who takes one
// scattered file after the other in the order of their names (see trail), and whoever wants the blob or the tar. It comes
// in the order of the blob, in large ranges, up to four of them at a time and so much that it takes half a second (see rest),
// into the blob's part file, where what is here already is copied in between. Who wants something of these ranges waits for
// it, and reads each chunk when it is there; what lies further behind he asks for himself, and it is left out then. So a byte is asked for once,
// in whatever order a blob is read; and when all of it is here it is verified as a whole, and the parts' file goes. What came
// by parts stays in the cache until then, for other processes and the next one, and is verified chunk by chunk whenever it is read.
//
//   - What is shown of a layer does not change while the source is open. If its blob or its tar is in the cache when
//     somebody first looks into it, its files are those of the tar; otherwise those of the table, until the source is
//     closed, also when the blob has come. FilesKey.Form says which. They can differ: eStargz has times to the second.
//   - A table that cannot be had (the registry knows no ranges, or sends others), that is not what its digest says, or that
//     leaves something open (see package layer) is given up for the tar before anything of it was shown.
//   - A chunk that is not what the table says is asked for once more, of the registry itself: it may have been a mirror's. If
//     it is wrong again that file is ErrDamaged. Where the registry does not send ranges any more, the blob is fetched whole.
//   - A blob that is wrong as a whole is not fetched again for ten minutes because of a chunk. Its bytes are kept as parts: chunks that
//     are right go on to be read.
//   - Parts are asked for in the repositories of all who want the blob one after the other, like blobs, until one gives them out (see repos).
//   - Requests for parts of one blob that follow one another within a second are told of as one fetch (see Fetching).
//
// # The cache
//
// Manifests, configs and the last listing are kept below manifests (see documents), blobs and parts of blobs beside the
// decompressed layers of package layer (see blobs and ranges), so that they share its bound. Offline, these are all there is.
package registry
