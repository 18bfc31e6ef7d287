{{/*
What values.schema.json cannot say: relations between values, in words that say what must change.
*/}}
{{- define "nodenet.check" -}}
{{- if not .Values.apiServers -}}
{{- fail "\n\napiServers is empty. Name the API servers' own addresses, for example --set 'apiServers={192.168.0.10:6443}'.\n`kubectl -n default get endpointslices -l kubernetes.io/service-name=kubernetes` lists them." -}}
{{- end -}}
{{- if not .Values.serviceCIDRs -}}
{{- fail "\n\nserviceCIDRs is empty. Name the range that ClusterIPs come from, for example --set 'serviceCIDRs={10.96.0.0/12}'.\nIt is kube-apiserver's --service-cluster-ip-range." -}}
{{- end -}}
{{- range $name := list "serviceCIDRs" "clusterCIDRs" "externalIPCIDRs" "excludeCIDRs" -}}
  {{- range index $.Values $name -}}
    {{- $bits := include "nodenet.bits" (list $name (regexReplaceAll "/.*" . "")) -}}
    {{- if gt (atoi (regexFind "[0-9]+$" .)) (len $bits) -}}
      {{- fail (printf "\n\n%s: the prefix length of %s is longer than the address: at most %d." $name . (len $bits)) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- if and .Values.removeServices .Values.serviceProxy -}}
{{- fail "\n\nremoveServices: nodenet serves Services. Set serviceProxy to false too, once another proxy serves them." -}}
{{- end -}}
{{- if and .Values.takeover (not .Values.serviceProxy) -}}
{{- fail "\n\ntakeover: with serviceProxy false nodenet serves no Services, so it takes none over. Leave one of both out." -}}
{{- end -}}
{{- if and (has "primary" .Values.nodePortAddresses) (gt (len .Values.nodePortAddresses) 1) -}}
{{- fail "\n\nnodePortAddresses: primary stands alone; leave the ranges out, or leave primary out." -}}
{{- end -}}
{{- range $server := .Values.apiServers -}}
  {{- $host := regexReplaceAll ":[0-9]+$" $server "" | trimPrefix "[" | trimSuffix "]" -}}
  {{- if not (or (regexMatch "^\\[[0-9a-fA-F:]+\\]:[0-9]+$" $server) (regexMatch "^[a-zA-Z0-9.-]+:[0-9]+$" $server)) -}}
    {{- fail (printf "\n\napiServers: %s is not host:port; an IPv6 address stands in brackets, for example [2001:db8::10]:6443." $server) -}}
  {{- end -}}
  {{- if gt (atoi (regexFind "[0-9]+$" $server)) 65535 -}}
    {{- fail (printf "\n\napiServers: %s has no valid port: at most 65535." $server) -}}
  {{- end -}}
  {{- if regexMatch "^kubernetes(\\.default(\\.svc(\\..*)?)?)?$" $host -}}
    {{- fail (printf "\n\napiServers: %s is the Service `kubernetes`, which nodenet itself programs. Use the API servers' own addresses:\n`kubectl -n default get endpointslices -l kubernetes.io/service-name=kubernetes` lists them." $server) -}}
  {{- end -}}
  {{- if or (contains ":" $host) (regexMatch "^[0-9.]+$" $host) -}}
    {{- $bits := include "nodenet.bits" (list "apiServers" $host) -}}
    {{- range $range := $.Values.serviceCIDRs -}}
      {{- $network := include "nodenet.bits" (list "serviceCIDRs" (regexReplaceAll "/.*" $range "")) -}}
      {{- $length := atoi (regexFind "[0-9]+$" $range) -}}
      {{- if and (eq (len $bits) (len $network)) (eq (trunc $length $bits) (trunc $length $network)) -}}
        {{- fail (printf "\n\napiServers: %s lies in the service range %s: it is a ClusterIP, which nodenet itself programs, so\nneither operator nor agents would reach the API server before they had reached it. Use the API servers' own addresses:\n`kubectl -n default get endpointslices -l kubernetes.io/service-name=kubernetes` lists them." $server $range) -}}
      {{- end -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- if and (not .Values.operator.hostNetwork) (regexMatch "^(127\\.|\\[::1\\])" .Values.operator.httpAddress) -}}
{{- fail (printf "\n\noperator.httpAddress %s cannot be reached without operator.hostNetwork. Use 0.0.0.0:%s." .Values.operator.httpAddress (include "nodenet.port" .Values.operator.httpAddress)) -}}
{{- end -}}
{{- /* Numbers of the marks' bits: whole powers of two, as there are no shifts here. */ -}}
{{- $power := 1 -}}
{{- range until (int .Values.insideMark.firstBit) }}{{ $power = mul $power 2 }}{{ end -}}
{{- $field := 1 -}}
{{- range until (int .Values.insideMark.bits) }}{{ $field = mul $field 2 }}{{ end -}}
{{- $base := int64 .Values.insideMark.base -}}
{{- if gt (add (int .Values.insideMark.firstBit) (int .Values.insideMark.bits)) 32 -}}
{{- fail (printf "\n\ninsideMark: %d bits from bit %d on do not fit in 32." (int .Values.insideMark.bits) (int .Values.insideMark.firstBit)) -}}
{{- end -}}
{{- if mod (div $base $power) $field -}}
{{- fail (printf "\n\ninsideMark: base %d has one of the %d bits from bit %d on. Use a bit beside them." $base (int .Values.insideMark.bits) (int .Values.insideMark.firstBit)) -}}
{{- end -}}
{{- $bit := int .Values.masqueradeBit -}}
{{- $masquerade := 1 -}}
{{- range until $bit }}{{ $masquerade = mul $masquerade 2 }}{{ end -}}
{{- $within := and (ge $bit (int .Values.insideMark.firstBit)) (lt $bit (add (int .Values.insideMark.firstBit) (int .Values.insideMark.bits) | int)) -}}
{{- if or $within (mod (div $base $masquerade) 2) -}}
{{- fail (printf "\n\nmasqueradeBit %d is one of the bits of insideMark, which mark packets of the nodes' own clients. Use another one, or move those." $bit) -}}
{{- end -}}
{{- if eq .Values.nodeNamespace.name .Release.Namespace -}}
{{- fail (printf "\n\nnodeNamespace.name is the release's own namespace %s: agents could then write the operator's Lease. Choose another one." .Release.Namespace) -}}
{{- end -}}
{{- end -}}

{{/*
An address as a string of its bits, so that a range holds an address where the first bits are the same.
Argument: (list value's-name address).
*/}}
{{- define "nodenet.bits" -}}
{{- $name := index . 0 -}}
{{- $address := index . 1 -}}
{{- if contains ":" $address -}}
  {{- $halves := splitList "::" $address -}}
  {{- $head := compact (splitList ":" (first $halves)) -}}
  {{- $tail := list -}}
  {{- if gt (len $halves) 1 -}}{{- $tail = compact (splitList ":" (last $halves)) -}}{{- end -}}
  {{- $missing := sub 8 (add (len $head) (len $tail)) -}}
  {{- if or (gt (len $halves) 2) (lt $missing 0) (and (eq (len $halves) 1) (ne $missing 0)) -}}
    {{- fail (printf "\n\n%s: %s is not an IPv6 address." $name $address) -}}
  {{- end -}}
  {{- range concat $head (splitList "," (trimSuffix "," (repeat (int $missing) "0,"))) $tail -}}
    {{- if . -}}
      {{- if gt (len .) 4 -}}{{- fail (printf "\n\n%s: %s is not an IPv6 address." $name $address) -}}{{- end -}}
      {{- printf "%016b" (int64 (printf "0x%s" .)) -}}
    {{- end -}}
  {{- end -}}
{{- else -}}
  {{- $octets := splitList "." $address -}}
  {{- if not (regexMatch "^((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])(\\.|$)){4}$" $address) -}}
    {{- fail (printf "\n\n%s: %s is not an IPv4 address." $name $address) -}}
  {{- end -}}
  {{- range $octets -}}{{- printf "%08b" (atoi .) -}}{{- end -}}
{{- end -}}
{{- end -}}
