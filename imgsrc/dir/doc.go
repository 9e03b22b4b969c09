// Package dir is the source of the one image that a directory holds, as skopeo's dir: transport writes it: manifest.json,
// and beside it every blob under the digits of its digest. If the manifest is an index, those of its manifests that are
// there are listed too. Such a directory has no names and cannot be tagged; its signatures are not looked at.
package dir
