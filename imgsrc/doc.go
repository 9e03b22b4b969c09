// Package imgsrc says what a container image is: where images come from (Source, Image, Catalog), what one says of
// itself (Facts and the functions that take it), and under which file names its parts and its names appear (EscapeKey,
// NamePath, NameTree). Each kind of source is a package below this one.
//
// It is not a client of any registry or store and unpacks nothing: reading bytes is the sources' work, and what is done
// with layers is package layer's. Nothing here knows of file systems beyond what may be a file name.
//
// # What an image says
//
// Load reads manifest and config once. All the rest are pure functions of Facts: they do no I/O, look at no clock, and
// give the same bytes for the same image for ever, because the kernel caches what they return without asking again. Their
// results may be the bytes that Facts holds: callers must not change them.
//
// A value is there if its key is in the JSON and is not null. One that is not there is ErrAbsent; one that is there and
// empty ("User": "" in every config of Docker's) is an empty file; nothing is made up for either. A value of a wrong
// type, a time that is none, a null in a list or map of strings, is ErrDamaged for that one file, and the others of the
// same config still read. A manifest is taken whole or not at all: one bad descriptor leaves open which layer is which.
// Unknown keys do no harm, and of a key that is there twice the last counts, as for every tool that people read JSON with.
//
// A text is followed by one newline, and a list has one item a line. An item with a newline in it takes several: the
// exact form is in the config. JSON is indented by two spaces, with sorted keys, and "<" as itself.
//
// Lists of more than 10,000 entries are refused. Real ones have some hundred, and the forms that are made of them here
// would turn four megabytes of empty entries into a hundred times that.
//
// # Manifests
//
// OCI manifests and indexes, Docker's schema 2 and manifest lists, schema 1 signed or not, and the artifact manifests
// that OCI had before 1.1. The fields decide which one it is, since many manifests have no media type; a document that
// has those of two formats is refused, and so is one whose media type promises others, because two readers would
// take it for two images. The config's media type decides between image and artifact, as in containers/image: an
// artifact's config is never read as an image's, whatever keys it has.
//
// Schema 1 has no config and names no sizes and no diff ids. Its newest v1Compatibility is Docker's config without
// rootfs and history, so the single values come from there, and the history from all of them, turned round. A throwaway
// entry has no layer, as for every reader of the format. Diff ids are the source's if it has recorded them; otherwise
// FindDiffIDs reads the layers.
//
// An index lists its entries as Children, each with a name of its own: its platform's, with a part of its digest where that
// is taken, and its digest's if it names no platform. An entry that is no descriptor is left out. Choose takes the entry
// for a platform as podman does.
//
// # The two forms of a config
//
// To Docker's form nothing is converted: the bytes stay as they are. Docker's config has every field of OCI's, by the
// same name and with the same meaning; what it requires beyond the fields that OCI requires is nothing; and readers of
// either ignore what they do not know. So no Hostname, Domainname, Image, container_config or docker_version is added to
// an image that has none, though Docker's own encoder would write empty ones, a Healthcheck, OnBuild or Shell that a
// builder put into an OCI config stays, and the digest, which is the image's id, remains. skopeo and podman do the
// same when they write an OCI image as schema 2.
//
// Schema 1 becomes a Docker config by containers/image, to the bytes whose digest podman takes for the image's id. That
// conversion writes the year 1 where a step has no time and, for Docker before 1.8.3, empty values for what is missing.
// Without diff ids rootfs has none.
//
// To OCI's form a Docker config loses what the image specification has no field for: container, container_config,
// docker_version, parent, comment, id, Size at the top, and in config Hostname, Domainname, the Attach, Tty and Stdin
// switches, Healthcheck, Image, NetworkDisabled, MacAddress, OnBuild, StopTimeout, Shell. Everything else is kept:
// ArgsEscaped, variant, os.version, os.features and the digits of times included. Empty values and nulls are left out,
// as they mean the same as nothing in both formats; architecture, os and rootfs, which OCI requires, are always written, the first two
// empty if they are missing, and a config without rootfs is refused. The result is what skopeo makes, but for this:
// a time keeps trailing zeros, a command that is a single string becomes a list of one, where skopeo fails, and
// where there is no config inside the config none is added.
//
// # Missing values
//
// created, os, architecture and the working directory are no files if the config does not have them, and no value is
// put in their place: not the manifest's, not the index's, not this machine's. Only where a format demands it is an empty
// one written: architecture and os in OCI's form, and all that podman shows as empty in InspectJSON.
//
// # History
//
// Each history entry that is not an empty layer has made the next layer, counted from the base; where one list is
// longer, its rest is joined to nothing. Diff ids are joined only if there are as many as layers. The size is the
// manifest's, of the layer as it is transferred, where podman shows the unpacked layer's.
//
// # What images have to do with each other
//
// One image is the parent of another if that has the same layers or one more and the same history and one step more, which
// is how podman tells it. A referrer of an image is a manifest that names one of its manifests as subject, or a tag of
// cosign's. Links lead from an image to its referrers and from an index to what it lists, so those of them that would close a
// circle are left out: names are free, and an index may have what it lists for its subject.
//
// # Names
//
// A full reference is its own path below images/; anything else is one escaped element. The escape is injective and
// canonical: a name that escaping would not make is no name. NameTree settles who gets a place that a link and a
// directory both want.
package imgsrc
